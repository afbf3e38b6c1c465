// Two answers to one message, side by side, and a vote for one of them.
{
    const {$, press, make, note, cut, read, write, isNumber, adapters, selected, told, nameOf} = hyperlora;
    const SCORE = "hyperlora.score", MAX_PAIRS = 50; // votes, of so many pairs

    function checkScore(value) {
        const good = ([, counts]) => Array.isArray(counts) && counts.length === 3 && counts.every(isNumber);
        return Object.fromEntries(Object.entries(value).filter(good).slice(0, MAX_PAIRS));
    }

    let round = null; // what is compared: its two sides as [name, what the server is told], and which was shown where

    /** Those who can be compared, as [value, name]. */
    function rivals() {
        const read = selected() ? [["prompted", `${hyperlora.NO_ADAPTER}, “${nameOf(selected())}” in its prompt`]] : [];
        const at = ({strength}) => (strength === 1 ? "" : ` · strength ${strength}`);
        return [...adapters().map((adapter) => [adapter.id, nameOf(adapter) + at(adapter)]), ["", hyperlora.NO_ADAPTER], ...read];
    }

    function drawRivals() {
        const all = rivals();
        for (const [id, first] of [["#left_by", selected()?.id ?? ""], ["#right_by", ""]]) {
            const list = $(id), now = all.some(([value]) => value === list.dataset.chosen) ? list.dataset.chosen : first;
            list.replaceChildren(...all.map(([value, textContent]) => make("option", {value, textContent, selected: value === now})));
            list.onchange = () => {
                list.dataset.chosen = list.value;
            };
        }
    }

    /** A side as the server reads it. */
    function rival(value) {
        const prompted = value === "prompted", adapter = adapters().find(({id}) => id === (prompted ? selected()?.id : value));
        const settings = hyperlora.settings();
        return {adapter: adapter ? told(adapter) : "", prompted, settings, describe: hyperlora.describes()};
    }

    function askBoth() {
        if ($("#compare").classList.contains("running")) return;
        const chosen = [$("#left_by"), $("#right_by")], blind = $("#blind").checked;
        const sides = chosen.map((list) => [list.selectedOptions[0]?.textContent ?? hyperlora.NO_ADAPTER, rival(list.value)]);
        const shown = blind && Math.random() < 0.5 ? sides.reverse() : sides;
        round = {shown, blind, seed: Math.floor(Math.random() * 2 ** 31), answered: 0};
        note("#verdict");
        drawRound();
        press("ask_left");
        press("ask_right");
    }

    /** -> side, message, seed. */
    function askSide(which, message) {
        const [, side] = round.shown[which === "left" ? 0 : 1];
        return [JSON.stringify({...side, side: which}), message, round.seed];
    }

    function drawRound() {
        for (const [i, id] of ["left", "right"].entries())
            $(`#${id}`).dataset.by = round.blind ? `Answer ${i + 1}` : round.shown[i][0];
        $("#compare").classList.toggle("running", round.answered < 2);
        const off = round.answered < 2 || round.voted || $("#answers .error") !== null;
        for (const vote of document.querySelectorAll("#vote button")) vote.disabled = off;
    }

    function sideAnswered() {
        round.answered += 1;
        drawRound();
    }

    function sideFailed() {
        round.voted = true; // one answer alone is nothing to vote on
        sideAnswered();
        note("#verdict", "The server did not answer: ask again.");
    }

    /** The visitor's votes of these two, by name, kept in their browser alone. */
    function vote(winner) {
        const names = round.shown.map(([name]) => cut(name, hyperlora.MAX_NAME)), pair = [...names].sort(), key = JSON.stringify(pair);
        const score = read(SCORE, checkScore) ?? {}, counts = score[key] ?? [0, 0, 0]; // the first's, alike, the second's
        counts[winner === null ? 1 : pair[0] === names[winner] ? 0 : 2] += 1;
        delete score[key];
        write(SCORE, JSON.stringify(Object.fromEntries([[key, counts], ...Object.entries(score)].slice(0, MAX_PAIRS))));
        Object.assign(round, {voted: true, blind: false});
        drawRound();
        note("#verdict", `“${pair[0]}” ${counts[0]}, both alike ${counts[1]}, “${pair[1]}” ${counts[2]}`);
    }

    hyperlora.draws.push(drawRivals);
    hyperlora.begins.push(() => {
        for (const [id, winner] of [["#left_wins", 0], ["#same", null], ["#right_wins", 1]])
            $(id).addEventListener("click", () => vote(winner));
    });
    Object.assign(hyperlora, {askBoth, askSide, sideAnswered, sideFailed});
}
