// What can be done with an answer, how answers are to be given, and the conversation as a file.
{
    const {$, press, make, note, enter, cut, read, write, isText, isNumber, MAX_NAME, LIMIT} = hyperlora;
    const talk = hyperlora.conversation;

    // ---- the answers to one message: the one that is shown, and others beside it ----

    const NOTHING = {by: "", answer: "", end: "", markdown: false, speed: 0, missed: 0, how: ""};

    /** What belongs to an answer, and nothing else. */
    const answerOf = (turn) => Object.fromEntries(Object.entries(NOTHING).map(([name, none]) => [name, turn[name] ?? none]));
    const answersTo = ({others = [], place = 0, ...turn}) => [...others.slice(0, place), answerOf(turn), ...others.slice(place)];

    /** Show the answer so many places on, with which the conversation goes on. */
    function leaf(step) {
        const turns = talk().turns, last = turns.at(-1), all = answersTo(last), place = (last.place ?? 0) + step;
        if (!all[place]) return;
        const others = all.filter((answer, i) => i !== place);
        hyperlora.putTurns([...turns.slice(0, -1), {...last, ...answerOf(all[place]), others, place}]);
    }

    async function copyText(text, button) {
        try {
            await navigator.clipboard.writeText(text);
        } catch { // not over plain HTTP
            const box = make("textarea", {value: text});
            button.after(box);
            box.select();
            document.execCommand("copy");
            box.remove();
        }
        const {title} = button;
        button.title = "Copied";
        button.classList.add("done");
        setTimeout(() => {
            button.title = title;
            button.classList.remove("done");
        }, 2000);
    }

    // ---- a message is edited: what came after it leaves once the new one is there, and can come back ----

    let editing = null; // the conversation, and the number of the turn in it
    let replaced = null; // the conversation, and its turns before

    function edit(number) {
        const box = $("#message textarea"), {question} = talk().turns[number];
        const leave = () => {
            editing = null;
            if (box.value === question) enter("#message textarea", "");
        };
        editing = {chat: talk(), number};
        enter("#message textarea", question);
        box.focus();
        note("#chat_note", "You are editing a message: once it is sent, what came after it leaves.", ["Leave it", leave]);
    }

    const isEdited = () => editing?.chat === talk();
    /** The turns that a new message follows. */
    const followed = () => (isEdited() ? talk().turns.slice(0, editing.number) : talk().turns);

    function begun({chat, before, earlier, isNew}) {
        note("#chat_note"); // an Undo there is of what was
        if (!isNew || !isEdited() || earlier.length !== editing.number) return;
        editing = null;
        replaced = {chat, before};
    }

    function ended() {
        if (replaced?.chat === talk()) {
            const {before} = replaced;
            note("#chat_note", "The edited message took the place of what was there.", ["Undo", () => !hyperlora.isBusy() && hyperlora.putTurns(before)]);
        }
        replaced = null;
    }

    const acts = {
        previous: () => leaf(-1),
        next: () => leaf(1),
        on: () => press("go_on"),
        copy: (number, button) => copyText(talk().turns[number].answer, button),
        edit,
    };

    function act(event) {
        const button = event.target.closest("button.act"), number = Number(button?.value);
        if (!button) return;
        if (button.classList.contains("code")) return copyText(button.parentElement.querySelector("pre").textContent, button);
        const last = talk().turns.length - 1;
        const does = Object.keys(acts).find((name) => button.classList.contains(name));
        if (!talk().turns[number] || (hyperlora.isBusy() && does !== "copy")) return;
        if (number === last || ["copy", "edit"].includes(does)) acts[does](number, button);
    }

    // ---- how answers are to be given: what is typed, in the browser, with presets of it ----

    const SETTINGS = "hyperlora.settings", MAX_PRESETS = 20, MAX_TEXT = 10_000;
    const FIELDS = ["system", "begin", "temperature", "top_p", "repetition_penalty", "max_new_tokens", "seed", "stop"];

    const checkFields = (value) => Object.fromEntries(FIELDS.filter((name) => value[name] && isText(value[name], MAX_TEXT)).map((name) => [name, value[name]]));

    function checkSettings({now = {}, presets = {}}) {
        const good = Object.entries(presets).filter(([name, fields]) => name && isText(name, MAX_NAME) && fields);
        const few = good.slice(0, MAX_PRESETS).map(([name, fields]) => [name, checkFields(fields)]);
        return {now: checkFields(now), presets: Object.fromEntries(few)};
    }

    const kept = () => read(SETTINGS, checkSettings) ?? {now: {}, presets: {}};
    const settings = () => JSON.stringify(kept().now);
    const same = (one, other) => JSON.stringify(checkFields(one)) === JSON.stringify(checkFields(other));

    function keep(now, presets = kept().presets) {
        write(SETTINGS, JSON.stringify({now, presets}));
        drawSettings();
    }

    function drawSettings() {
        const {now, presets} = kept();
        for (const name of FIELDS)
            if (document.activeElement !== $(`#set_${name}`)) $(`#set_${name}`).value = now[name] ?? "";
        const names = Object.keys(presets), chosen = names.find((name) => same(presets[name], now)) ?? "";
        const option = (value) => make("option", {value, textContent: value || "Presets", selected: value === chosen});
        $("#preset").replaceChildren(...["", ...names].map(option));
        $("#preset_delete").disabled = !chosen;
        $("#more_button").classList.toggle("set", settings() !== "{}");
    }

    /** What the server says of what is typed. */
    function checked(text) {
        const {wrong, default: own, hint} = JSON.parse(text);
        for (const name of FIELDS) {
            const box = $(`#set_${name}`), said = $(`#${name}_said`);
            said.textContent = wrong[name] ?? hint[name] ?? "";
            said.className = wrong[name] ? "error" : "";
            box.ariaInvalid = String(name in wrong);
            if (own[name]) box.placeholder = own[name];
        }
        $("#more_button").classList.toggle("wrong", Object.keys(wrong).length > 0);
    }

    function choosePreset(event) {
        const {now, presets} = kept();
        keep(presets[event.target.value] ?? now);
        press("check");
    }

    function savePreset() {
        const {now, presets} = kept(), name = cut($("#preset_name").value.trim(), MAX_NAME);
        if (!name) return note("#preset_note", "Give the preset a name.");
        if (!(name in presets) && Object.keys(presets).length >= MAX_PRESETS)
            return note("#preset_note", `There is room for ${MAX_PRESETS} presets: delete one of them first.`);
        keep(now, {...presets, [name]: now});
        $("#preset_name").value = "";
        note("#preset_note", `“${name}” is saved.`);
    }

    function deletePreset() {
        const {now, presets} = kept(), name = $("#preset").value, {[name]: gone, ...others} = presets;
        keep(now, others);
        note("#preset_note", `“${name}” is deleted.`, ["Undo", () => keep(kept().now, {...kept().presets, [name]: gone})]);
    }

    // ---- the conversation as a file ----

    function save(ending, type, text) {
        const name = titleOf().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || "conversation";
        const link = make("a", {href: URL.createObjectURL(new Blob([text], {type})), download: `${name}.${ending}`});
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    }

    const titleOf = () => hyperlora.titleOf(talk());
    const asJson = () => JSON.stringify({name: titleOf(), turns: talk().turns}, null, 1);

    function asMarkdown() {
        const parts = talk().turns.map(({question, by, answer}) => `## You\n\n${question}\n\n## ${by}\n\n${answer}`);
        return [`# ${titleOf()}`, ...parts].join("\n\n") + "\n";
    }

    /** A turn from a file, with nothing in it but what belongs there; null for what is none. */
    function checkTurn({question, others = [], place = 0, ...turn}) {
        const answers = [turn, ...others].map(answerOf);
        const isKind = (answer) => Object.entries(NOTHING).every(([name, none]) => typeof answer[name] === typeof none);
        const isWhole = ({by, answer, end, how}) => [question, by, answer, end, how].every((text) => text.isWellFormed());
        const isPossible = ({speed, missed}) => speed >= 0 && speed < 1e9 && missed >= 0 && Number.isSafeInteger(missed);
        const good = typeof question === "string" && answers.every((answer) => isKind(answer) && isWhole(answer) && isPossible(answer));
        return good && Number.isInteger(place) ? {question, id: "", ...answers[0], others: answers.slice(1), place} : null;
    }

    async function bring(file) {
        const bad = () => note("#chat_note", `“${cut(file.name, MAX_NAME)}” is no conversation that was saved here as JSON.`);
        if (file.size > LIMIT) return note("#chat_note", "The file is larger than 2 MB: there is no room for that.");
        let brought = null;
        try {
            const {name, turns} = JSON.parse(await file.text());
            brought = hyperlora.checkChat({name, turns: turns.map(checkTurn)});
        } catch {}
        if (!brought?.turns.length) return bad();
        note("#chat_note");
        hyperlora.addChat(brought.name.isWellFormed() ? brought.name : "", brought.turns);
    }

    function choose() {
        const box = make("input", {type: "file", accept: ".json,application/json"});
        box.onchange = () => bring(box.files[0]);
        box.click();
    }

    const files = () => [
        ["Save as JSON", () => save("json", "application/json", asJson()), talk().turns.length > 0],
        ["Save as Markdown", () => save("md", "text/markdown", asMarkdown()), talk().turns.length > 0],
        ["Open a JSON file", choose],
    ];

    hyperlora.draws.push(() => {
        if (editing && !isEdited()) {
            editing = null;
            note("#chat_note");
        }
        drawSettings();
    });
    hyperlora.begins.push(() => {
        document.addEventListener("click", act);
        for (const name of FIELDS) {
            $(`#set_${name}`).addEventListener("input", (event) => keep({...kept().now, [name]: event.target.value}));
            $(`#set_${name}`).addEventListener("change", () => press("check"));
        }
        $("#settings").addEventListener("toggle", (event) => {
            $("#more_button").ariaExpanded = String(event.newState === "open");
            if (event.newState !== "open") return;
            press("check");
            $("#set_system").focus();
        });
        $("#preset").addEventListener("change", choosePreset);
        $("#preset_save").addEventListener("click", savePreset);
        $("#preset_delete").addEventListener("click", deletePreset);
        $("#set_none").addEventListener("click", () => {
            keep({});
            press("check");
        });
    });
    Object.assign(hyperlora, {answersTo, followed, begun, ended, settings, checked, files});
}
