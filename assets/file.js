// A file of messages through the selected adapter: read and bounded here, its answers drawn as they come.
{
    const {$, press, make, selected, told, nameOf, NO_ADAPTER, reader} = hyperlora;
    const DRAWN = 100; // rows at most, so that the page stays quick
    const WAIT = 400; // milliseconds after the last key, until pasted lines are looked at
    const ROOM = 300_000; // characters of answers, after which the server need not send them again
    const NONE = "(none)";

    const count = (n) => n.toLocaleString("en");

    // ---- what is to be run ----

    let source = null; // as it is given
    let looked = null; // the source that the server has been asked about
    let file = null; // what the server said of it
    let run = null; // what is answered, or was last: its rows by number, and the text that is read of it

    /** A line that says what happened; `kind` is "error" where it is a mistake. */
    function say(text, kind = "") {
        $("#file_said").replaceChildren(...(text ? [make("span", {className: kind, textContent: text})] : []));
    }

    function give(given) {
        source = given;
        file = null;
        draw();
        if (given) press("press_look");
    }

    /** -> the file, for the server to look at. */
    function fileGiven() {
        looked = source;
        return JSON.stringify(source);
    }

    function fileRead(text) {
        if (looked !== source || !source) return; // another one meanwhile
        const found = JSON.parse(text);
        if (found.error) return say(found.error, "error");
        file = found;
        run = run?.over === false ? run : null;
        for (const [id, chosen, options] of [
            ["#messages_by", file.messages, file.columns],
            ["#answers_by", file.answers ?? "", [...file.columns, ""]],
        ])
            $(id).replaceChildren(...options.map((value) => make("option", {value, textContent: value || NONE, selected: value === chosen})));
        draw();
    }

    // ---- a run ----

    const begin = () => file && run?.over !== false && press("press_run");

    /** -> the file, and what is asked of it. */
    function fileAsked() {
        const adapter = selected(), at = adapter?.strength === 1 ? "" : ` · strength ${adapter?.strength}`;
        run = {
            name: source.name, by: adapter ? `“${nameOf(adapter)}”${at}` : NO_ADAPTER, all: file.rows, header: "", rows: [],
            taken: 0, done: 0, scored: 0, right: 0, failed: 0, began: Date.now(), ended: false, over: false,
        };
        say("");
        draw();
        const describe = hyperlora.describes();
        const [messages, answers] = [$("#messages_by").value, $("#answers_by").value];
        return [JSON.stringify(source), JSON.stringify({messages, answers, describe, adapter: adapter ? told(adapter) : ""})];
    }

    /** What has come so far: how many lines are left out, and those that follow. */
    function rowsCame(text) {
        if (!run || run.ended || !text) return;
        const [gone, ...lines] = text.split("\n");
        for (const line of lines.slice(run.taken - gone, -1)) {
            const item = JSON.parse(line);
            run.taken += 1;
            if (Array.isArray(item)) take(item);
            else if (item.error) end(item.error, "error");
            else if (item.end) end(item.end === "stopped" ? "Stopped." : "Done.");
            else run.header = item.header;
        }
        if (text.length > ROOM && !run.ended) press("press_take");
        draw();
    }

    /** -> how many lines are here, and need not be sent again. */
    const rowsTaken = () => run.taken;

    function take([i, message, answer, expected, right, error, line]) {
        run.rows[i] = {message, answer, expected, right, error, line};
        run.done += 1;
        run.failed += error !== "";
        run.scored += right !== null;
        run.right += right === true;
    }

    /** The run is over, and all of it has come that will. -> nothing, so that the next one does not take it for its own. */
    function fileEnded(text) {
        rowsCame(text);
        if (!run.ended) end("Interrupted: the connection was lost.", "error");
        run.over = true; // only now is Gradio done with it, and takes another one
        draw();
        return "";
    }

    function end(text, kind) {
        run.ended = true;
        const failed = run.failed ? ` ${count(run.failed)} failed.` : "";
        say(`${text} ${count(run.done)} of ${count(run.all)} answered.${failed}${score()}`, kind);
    }

    const score = () => (run.scored ? ` ${count(run.right)} of ${count(run.scored)} right.` : "");

    function left() {
        const seconds = (Date.now() - run.began) / 1000, rest = (seconds / run.done) * (run.all - run.done);
        if (seconds < 2 || !run.done) return "";
        return rest < 60 ? ` About ${Math.ceil(rest)} s left.` : ` About ${Math.ceil(rest / 60)} minutes left.`;
    }

    /** The rows that are answered, as CSV. */
    function save() {
        const text = run.header + run.rows.map((row) => row.line).join("");
        const url = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
        const name = run.name.replace(/\.[^.]*$/, "") || "messages";
        make("a", {href: url, download: `${name}.answers.csv`}).click();
        run.saved = true;
        setTimeout(() => URL.revokeObjectURL(url), 60_000);
    }

    // ---- drawing ----

    const MARKS = new Map([[true, ["✓ right", "right"]], [false, ["✗ wrong", "wrong"]]]);

    function drawRow([i, {message, answer, expected, right, error}], scored) {
        const cell = (textContent, className = "") => make("td", {textContent, className});
        const [mark, kind] = MARKS.get(right) ?? (error ? ["! failed", "error"] : ["", ""]);
        const cells = [cell(message), error ? cell(error, "error") : cell(answer)];
        return make("tr", {}, make("th", {textContent: i + 1, scope: "row"}), ...cells, ...(scored ? [cell(expected), cell(mark, kind)] : []));
    }

    /** The rows to be seen, in their order: those that are answered, or the file's first. */
    function seen() {
        if (!run && !file) return [];
        if (!run) {
            const at = file.columns.indexOf($("#messages_by").value), to = file.columns.indexOf($("#answers_by").value);
            return file.first.map((row, i) => [i, {message: row[at], answer: "", expected: row[to] ?? "", right: null, error: ""}]);
        }
        const found = [], only = $("#amiss input").checked;
        for (const [i, row] of run.rows.entries()) {
            if (row && (!only || row.right === false || row.error)) found.push([i, row]);
            if (found.length === DRAWN) break;
        }
        return found;
    }

    let last = ""; // what is drawn

    function drawRows() {
        const rows = seen(), scored = run ? run.scored > 0 : Boolean($("#answers_by").value);
        const now = JSON.stringify([run?.by, run?.began, scored, rows]);
        if (now === last) return;
        last = now;
        const names = ["", "Message", run ? `Answer: ${run.by}` : "Answer", ...(scored ? ["Expected", ""] : [])];
        const head = make("tr", {}, ...names.map((textContent) => make(textContent ? "th" : "td", {textContent, scope: "col"})));
        const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows.map((row) => drawRow(row, scored))));
        const {scrollTop} = $("#rows");
        $("#rows").replaceChildren(...(rows.length ? [table] : []));
        $("#rows").scrollTop = scrollTop;
    }

    function draw() {
        const running = run?.over === false;
        $("#file").classList.toggle("running", running);
        $("#file").classList.toggle("read", file !== null);
        $("#file").classList.toggle("answered", run !== null);
        $("#run_file").disabled = !file || running;
        $("#save_file").disabled = !run?.done;
        $("#file_by").textContent = `through ${selected() ? `“${nameOf(selected())}”` : "the base model: no adapter is selected"}`;
        const shown = seen().length, all = run ? run.done : (file?.rows ?? 0);
        const rest = shown < all && !$("#amiss input").checked ? ` The first ${count(shown)} are shown${run ? "; the download has all" : ""}.` : "";
        if (run) {
            Object.assign($("#file_done"), {max: run.all, value: run.done});
            const so = `${count(run.done)} of ${count(run.all)} answered.${score()}${left()}`;
            $("#file_state").textContent = `${run.ended ? "" : so}${rest}`;
        } else $("#file_state").textContent = file ? `${count(file.rows)} ${file.rows === 1 ? "row" : "rows"}.${rest}` : "";
        drawRows();
    }

    hyperlora.draws.push(draw);
    hyperlora.begins.push(() => {
        reader($("#file"), give, say, WAIT);
        for (const list of [$("#messages_by"), $("#answers_by"), $("#amiss")])
            list.addEventListener("change", () => {
                if (list.id !== "amiss" && run?.over) run = null; // it is to be run anew
                draw();
            });
        $("#run_file").addEventListener("click", begin);
        $("#stop_file").addEventListener("click", () => press("press_stop"));
        $("#save_file").addEventListener("click", save);
        // Gradio loads the page again after a lost connection; many answers are not to go without a question.
        window.addEventListener("beforeunload", (event) => run?.done > DRAWN && !run.saved && event.preventDefault());
    });
    Object.assign(hyperlora, {fileGiven, fileRead, fileAsked, rowsCame, rowsTaken, fileEnded});
}
