// Adapters that are made of others, and those that are brought in a zip.
{
    const {$, press, make, note, adapters, selected, nameOf} = hyperlora;
    const MAX_ZIP = 256 * 2 ** 20;
    let order = "", place = "#note"; // the blend that is asked for; where its mistakes are said

    const recipeOf = ({recipe, description, strength}) =>
        ({...(recipe ?? {description}), ...(strength === 1 ? {} : {strength})});

    function drawParts() {
        if ($("#page").dataset.mode !== "blend") return;
        const typed = Object.fromEntries([...document.querySelectorAll("#parts input")].map((box) => [box.name, box.value]));
        const now = selected(), all = adapters().sort((a, b) => (b.id === now?.id) - (a.id === now?.id));
        const rows = all.map((adapter, i) => {
            const value = typed[adapter.id] ?? (i < 2 && !Object.keys(typed).length ? "0.5" : "");
            const box = make("input", {type: "number", name: adapter.id, min: -4, max: 4, step: 0.1, value});
            box.ariaLabel = `Weight of ${nameOf(adapter)}`;
            return make("label", {title: adapter.description}, box, make("span", {textContent: nameOf(adapter)}));
        });
        $("#parts").replaceChildren(...rows);
        $("#blend_them").disabled = rows.length < 2;
        note("#blend_note", rows.length < 2 ? "Two adapters are needed: generate another one, or import one." : "");
    }

    function ask(recipe, where) {
        [order, place] = [JSON.stringify(recipe), where];
        note(place, "Making the blend…");
        press("order_blend");
    }

    function askBlend() {
        const boxes = [...document.querySelectorAll("#parts input")].filter((box) => box.value !== "" || !box.validity.valid);
        if (boxes.length < 2) return note("#blend_note", "Give at least two adapters a weight.");
        const shelf = adapters(), partOf = (box) => [box.valueAsNumber, recipeOf(shelf.find(({id}) => id === box.name))];
        ask({blend: boxes.map(partOf), space: $("#space").value}, "#blend_note");
    }

    /** What the server made of it, or what is wrong with it. */
    function shelve(text) {
        if (!text) return;
        const {error, ...entry} = JSON.parse(text);
        if (error) return note(place, error);
        note(place);
        hyperlora.gone.delete(entry.recipe.upload);
        hyperlora.put(entry);
        hyperlora.turn("");
    }

    function checkZip(event) {
        const [file] = event.target.files ?? [];
        if (!file) return;
        place = "#note";
        if (file.size <= MAX_ZIP) return note(place, `Reading ${file.name}…`);
        note(place, "The zip is larger than 256 MiB, which is the limit: save a lower rank.");
        event.stopImmediatePropagation();
        event.target.value = "";
    }

    /** -> the digests of the shelf's uploads. */
    const uploads = () => JSON.stringify([...new Set(JSON.stringify(adapters()).match(/(?<="upload":")[0-9a-f]{64}(?=")/g) ?? [])]);

    function heardMissing(text) {
        hyperlora.gone = new Set(JSON.parse(text));
        hyperlora.draw();
    }

    hyperlora.gone = new Set();
    hyperlora.draws.push(drawParts);
    hyperlora.begins.push(() => {
        $("#blend_them").addEventListener("click", askBlend);
        $("#import").addEventListener("click", () => press("bring"));
        document.addEventListener("change", (event) => event.target.matches("[data-testid=bring-upload-button]") && checkZip(event), true);
        if (uploads() !== "[]") press("ask_missing");
    });
    Object.assign(hyperlora, {blend: () => order, shelve, uploads, heardMissing, askRecipe: (recipe) => ask(recipe, "#note")});
}
