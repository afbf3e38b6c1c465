// An adapter leaves the page: as a file, with the commands that use it, or to the Hub.
{
    const {$, press, make, selected, nameOf} = hyperlora;
    const NONE = "Select an adapter first: without one there is nothing to export.";
    const LOST = "The server did not answer: try again.", BACK = "hyperlora.export";
    let seen = null; // what the server was asked about last
    let found = {}; // what it said of that
    let busy = false, size = 0, session = "";

    const chosen = () => $("#forms :checked");
    const isHub = () => chosen().value === "hub";
    const form = () => ({hub: "peft", merged: $("#merged_as select").value})[chosen().value] ?? chosen().value;
    const asked = (more) => JSON.stringify({adapter: hyperlora.adapter(), form: form(), ...more});

    function say(text, kind = "", ...more) {
        $("#export_said").replaceChildren(...(text ? [make("span", {className: kind, textContent: text}), ...more] : []));
    }

    function drawBlock([tool, text]) {
        const copy = make("button", {type: "button", className: "act copy code", title: `Copy for ${tool}`});
        return make("figure", {className: "code"}, make("figcaption", {textContent: tool}), copy, make("pre", {textContent: text, tabIndex: 0}));
    }

    function draw() {
        const page = $("#export"), adapter = selected(), at = adapter?.strength === 1 ? "" : ` · strength ${adapter?.strength}`;
        page.dataset.form = chosen().value;
        page.classList.toggle("busy", busy);
        $("#export_what").textContent = adapter ? `“${nameOf(adapter)}”${at}` : "";
        $("#export_about").textContent = adapter ? chosen().dataset.about : NONE;
        $("#export_go").textContent = chosen().dataset.go;
        $("#export_go").disabled = busy || !adapter;
        if ($("#page").dataset.mode !== "export") return void (seen = null);
        if (!adapter) return drawFound({});
        if (asked() === seen) return;
        press("press_look_at");
    }

    function drawFound(said) {
        found = said;
        $("#export_size").textContent = said.size && !isHub() ? `${said.name}, ${said.size}` : "";
        $("#hub_name").placeholder = said.name?.replace(/\.zip$/, "") ?? "";
        const blocks = isHub() ? [] : (said.commands ?? []).map(drawBlock);
        const where = make("p", {textContent: "Unpack the zip into a folder of its name, and beside that:"});
        $("#commands").replaceChildren(...(blocks.length ? [where, ...blocks] : []));
    }

    /** -> what is to be looked at. */
    const exportLook = () => (seen = asked());

    function exportSeen(text) {
        if (seen !== asked()) return; // another one meanwhile
        const said = JSON.parse(text);
        session = said.session ?? session;
        drawFound(said);
        if (!busy) say(said.error, "error");
    }

    function begin() {
        busy = true;
        size = 0;
        say("");
        draw();
    }

    /** -> what is to be written. */
    function exportAsked() {
        begin();
        return asked();
    }

    /** -> what is to be pushed, and the token, which is nowhere else from now on. */
    function pushAsked() {
        const box = $("#hub_token"), token = box?.value ?? "", name = $("#hub_name").value.trim() || $("#hub_name").placeholder;
        if (box) box.value = "";
        begin();
        return [asked({name, public: $("#hub_public").checked}), token];
    }

    function exportTold(text) {
        if (!text || !busy) return;
        const said = JSON.parse(text);
        if (said.pushing) say("Pushing…");
        if (said.error) say(said.error, "error");
        if (said.size) {
            size = said.size;
            Object.assign($("#export_done"), {max: size, value: said.done});
            const part = Math.floor((100 * said.done) / size);
            say(`${part} % is written.`);
        }
        $("#export").classList.toggle("writing", Boolean(said.size));
        if (/^https?:\/\//.test(said.url ?? ""))
            say("It is on the Hub: ", "", make("a", {href: said.url, textContent: said.url, target: "_blank", rel: "noopener noreferrer"}));
    }

    /** It is over. -> nothing, so that the next one does not take it for its own. */
    function exportEnded(text) {
        if (!busy) return "";
        exportTold(text);
        const {name, error, url} = text ? JSON.parse(text) : {};
        if (name) {
            say(`${name} is ready.`);
            press("zip");
        } else if (!error && !url) say(LOST, "error");
        busy = false;
        draw();
        return "";
    }

    hyperlora.draws.push(draw);
    hyperlora.begins.push(() => {
        for (const list of [$("#forms"), $("#merged_as")])
            list.addEventListener("change", () => {
                if (!busy) say("");
                drawFound({});
                seen = null;
                draw();
            });
        addEventListener("pagehide", ({persisted}) => persisted || !session || navigator.sendBeacon(`leave?${session}`));
        const go = () => $("#export_go").disabled || press(isHub() ? "press_push" : "press_make");
        $("#export_go").addEventListener("click", go);
        $("#hub").addEventListener("keydown", (event) => event.key === "Enter" && event.target.matches("input") && go());
        $("#stop_export").addEventListener("click", () => press("press_cancel"));
        // Whoever signs in leaves the page, and comes back to it.
        try {
            $("#sign_in")?.addEventListener("click", () => (sessionStorage[BACK] = "hub"));
            if (sessionStorage[BACK]) {
                delete sessionStorage[BACK];
                $("#forms [value=hub]").checked = true;
                hyperlora.turn("export");
            }
        } catch {} // no storage
    });
    Object.assign(hyperlora, {exportLook, exportSeen, exportAsked, pushAsked, exportTold, exportEnded});
}
