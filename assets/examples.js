// From examples to descriptions: those that are found, which of the examples each gets right, and one taken.
{
    const {$, press, make, button, enter, turn, reader} = hyperlora;

    let source = null; // what is given
    let running = false, ended = true; // a search is Gradio's; it has said how it ended
    let found = []; // what is found so far
    let held = false; // whether those that it is tried on were held out

    function say(text, kind = "") {
        $("#found_said").replaceChildren(...(text ? [make("span", {className: kind, textContent: text})] : []));
    }

    function begin() {
        if (!source || running) return;
        running = true;
        ended = false;
        found = [];
        say("Trying descriptions…");
        draw();
        drawFound();
        press("press_find");
    }

    /** -> the examples, and whether the host may be asked too. */
    const pairsGiven = () => JSON.stringify({...source, ask: $("#ask_host input")?.checked ?? false});

    function pairsFound(text) {
        if (!text) return;
        const {error, end, notice, ...state} = JSON.parse(text);
        if (ended) return;
        if (state.found) {
            ({found, held} = state);
            drawFound();
        }
        if (error) finish(error, "error");
        else if (end) finish(`${end === "stopped" ? "Stopped" : "Done"}: ${found.length ? "take one that says what you mean." : "nothing was found."} ${notice}`);
        else if (found.some(({marks}) => marks)) say("Trying the best on the examples…");
    }

    function finish(text, kind) {
        ended = true;
        say(text, kind);
    }

    /** -> nothing, so that the next search does not take it for its own. */
    function pairsEnded(text) {
        pairsFound(text);
        if (!ended) finish("Interrupted: the connection was lost.", "error");
        running = false;
        draw();
        return "";
    }

    /** Into the box, and made. */
    function take(description) {
        enter("#description textarea", description);
        turn("");
        setTimeout(() => press("generate"));
    }

    function drawMark([input, answer, output, right]) {
        const line = `${right ? "✓ right" : "✗ wrong"}: ${input} → ${answer}${right ? "" : ` (expected: ${output})`}`;
        return make("li", {textContent: line, className: right ? "right" : "wrong"});
    }

    /** Those that were open stay so, and the focus stays where it is. */
    function drawFound() {
        const opened = new Set([...$("#found").querySelectorAll("[open]")].map((details) => details.dataset.of));
        const focused = $("#found").contains(document.activeElement) ? document.activeElement.dataset.of : null;
        const tag = focused && document.activeElement.tagName;
        $("#found").replaceChildren(...found.map(({description, likelihood, marks}) => {
            const choose = button(description, () => take(description), {className: "take"});
            choose.dataset.of = description;
            const fit = make("span", {className: "fit", textContent: `${Math.round(100 * likelihood)}% likely`, title: "How likely each token of the examples' outputs is under its adapter, on average."});
            if (!marks) return make("li", {}, choose, fit);
            const right = marks.filter((mark) => mark[3]).length, of = held ? "held-out examples" : "examples";
            const summary = make("summary", {textContent: `${right} of ${marks.length} ${of} right`});
            summary.dataset.of = description;
            const details = make("details", {open: opened.has(description)}, summary, make("ul", {}, ...marks.map(drawMark)));
            details.dataset.of = description;
            return make("li", {}, choose, fit, details);
        }));
        if (focused) [...$("#found").querySelectorAll(tag)].find((element) => element.dataset.of === focused)?.focus();
    }

    function draw() {
        $("#pairs").classList.toggle("running", running);
        $("#find").disabled = !source || running;
    }

    hyperlora.draws.push(draw);
    hyperlora.begins.push(() => {
        reader($("#pairs"), (given) => {
            source = given;
            draw();
        }, (text, kind) => running || say(text, kind), 0);
        $("#find").addEventListener("click", begin);
        $("#stop_find").addEventListener("click", () => press("press_stop_find"));
        $("#leave_pairs").addEventListener("click", () => turn(""));
    });
    Object.assign(hyperlora, {pairsGiven, pairsFound, pairsEnded});
}
