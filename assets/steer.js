// Adapters that are made of others, and those that are brought in a zip.
{
    const {$, press, make, note, adapters, selected, nameOf} = hyperlora;
    const MAX_ZIP = 256 * 2 ** 20;
    const LOST = JSON.stringify({error: "The server did not answer: try again."});
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

    /** What the server made of it, or what is wrong with it, where it was asked for. */
    function shelve(text, where) {
        if (!text) return;
        const {error, ...entry} = JSON.parse(text);
        if (error) return note(where, error);
        note(where);
        gone.delete(entry.recipe.upload);
        hyperlora.put(entry);
        if ($("#page").dataset.mode === "blend") hyperlora.turn("");
    }

    const blended = (text = LOST) => shelve(text, place);
    const brought = (text = LOST) => shelve(text, "#note");

    function checkZip(event) {
        const [file] = event.target.files ?? [];
        if (!file) return;
        if (file.size <= MAX_ZIP) return note("#note", `Reading ${file.name}…`);
        note("#note", "The zip is larger than 256 MiB, which is the limit: save a lower rank.");
        event.stopImmediatePropagation();
        event.target.value = "";
    }

    let gone = new Set(); // digests of uploads that the server does not have
    const digests = (adapter) => JSON.stringify(adapter.recipe ?? "").match(/(?<="upload":")[0-9a-f]{64}(?=")/g) ?? [];
    const lacks = (adapter) => digests(adapter).some((digest) => gone.has(digest));
    /** -> the digests of the shelf's uploads. */
    const uploads = () => JSON.stringify([...new Set(adapters().flatMap(digests))]);

    function heardMissing(text) {
        gone = new Set(JSON.parse(text));
        hyperlora.draw();
    }

    hyperlora.draws.push(drawParts);
    hyperlora.begins.push(() => {
        $("#blend_them").addEventListener("click", askBlend);
        $("#import").addEventListener("click", () => press("bring"));
        document.addEventListener("change", (event) => event.target.matches("[data-testid=bring-upload-button]") && checkZip(event), true);
        if (uploads() !== "[]") press("ask_missing");
    });
    Object.assign(hyperlora, {blend: () => order, blended, brought, lacks, uploads, heardMissing, askRecipe: (recipe) => ask(recipe, "#note")});
}
