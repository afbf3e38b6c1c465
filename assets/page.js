// What a visitor has: adapters as recipes, and conversations as text. Their browser keeps both, a key an entry, so that
// tabs do not overwrite each other; the server is told what a question needs and remembers nothing. All that is read
// from storage is checked here before it is shown, and by the server before it is used; names and texts are never HTML.
window.hyperlora = (() => {
    const LIMIT = 2_000_000; // characters in all, each two bytes: 4 MB
    const MAX_SHELF = 32, MAX_NAME = 120, MAX_STRENGTH = 4, MAX_OTHERS = 19, NO_ADAPTER = "No adapter";
    const ADAPTER = "hyperlora.adapter.", CHAT = "hyperlora.chat.", TAB = "hyperlora.tab";
    const KEEP = "hyperlora.keep", FORGOTTEN = "hyperlora.forgotten", THEME = "hyperlora.theme";
    const $ = (selector) => document.querySelector(selector);
    const press = (name) => $(`#${name}`).click();
    const hex = (byte) => byte.toString(16).padStart(2, "0");
    const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(8)), hex).join("");
    /** The text's beginning, with no half character at its end. */
    const cut = (text, most) => text.slice(0, most).replace(/[\uD800-\uDBFF]$/, "");

    // ---- storage: the browser's, else this tab's, else this page's memory; a later one has the newer text ----

    function open(name, refused) {
        try {
            return Object.keys(window[name]) && window[name];
        } catch {
            return refused;
        }
    }
    const stores = [open("localStorage", Object.freeze({[KEEP]: "no"})), open("sessionStorage", {}), {}];
    const parsed = new Map();
    const keys = (store, prefix = "hyperlora.") => Object.keys(store).filter((key) => key.startsWith(prefix));
    const keeping = () => stores[0][KEEP] !== "no";
    const raw = (key) => stores[2][key] ?? stores[1][key] ?? stores[0][key] ?? null;

    function read(key, check) {
        const text = raw(key);
        if (parsed.get(key)?.text !== text) {
            let value = null;
            try {
                value = check(JSON.parse(text));
            } catch {} // damaged: as if it were not there
            parsed.set(key, {text, value});
        }
        return parsed.get(key).value;
    }

    function write(key, text) {
        for (const [i, store] of stores.entries()) {
            if (i === 0 && !keeping()) continue;
            const others = keys(store).filter((other) => other !== key);
            const size = others.reduce((sum, other) => sum + other.length + store[other].length, key.length);
            try {
                if (i < 2 && size + text.length > LIMIT) continue;
                store[key] = text;
            } catch {
                continue; // the browser's own bound is lower
            }
            for (const later of stores.slice(i + 1)) delete later[key];
            return;
        }
    }

    function setting(key, value) {
        try {
            stores[0][key] = value;
        } catch {} // full to the last: it stays as it was, which is seen
    }

    function remove(key) {
        for (const store of stores) delete store[key];
    }

    /** Entries for which there was no room, or that were not to be kept, move to where they belong, if they can. */
    function settle() {
        if (!keeping()) return;
        for (const store of [stores[2], stores[1]])
            for (const key of [...keys(store, ADAPTER), ...keys(store, CHAT)]) write(key, raw(key));
    }

    /** When that goes for which there is no room; null where there is room. */
    function lasts() {
        if (keys(stores[2]).length) return "the page is closed or loaded again";
        const here = [ADAPTER, CHAT].some((prefix) => keys(stores[1], prefix).length);
        return keeping() && here ? "the tab is closed" : null;
    }

    // ---- what is in it ----

    const isText = (value, most) => typeof value === "string" && value.length <= most;
    const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

    function checkAdapter(value) {
        if (!isText(value.description, 10_000) || !value.description.trim()) return null;
        const name = isText(value.name, MAX_NAME) ? value.name : "";
        const possible = isNumber(value.strength) && Math.abs(value.strength) <= MAX_STRENGTH;
        const strength = possible ? value.strength : 1;
        const recipe = value.recipe?.constructor === Object ? value.recipe : undefined;
        return {...value, name, strength, recipe, place: isNumber(value.place) ? value.place : 0};
    }

    function checkChat(value) {
        const isAnswer = (answer) => ["by", "answer", "end"].every((name) => isText(answer[name], LIMIT));
        const isTurn = ({others = [], place = 0, ...turn}) => isText(turn.question, LIMIT) && isAnswer(turn)
            && others.length <= MAX_OTHERS && others.every(isAnswer) && place >= 0 && place <= others.length;
        if (!Array.isArray(value.turns) || !value.turns.every(isTurn)) return null;
        const name = isText(value.name, MAX_NAME) ? value.name : "";
        const adapter = isText(value.adapter, 64) ? value.adapter : "";
        return {name, adapter, turns: value.turns, at: isNumber(value.at) ? value.at : 0};
    }

    function entries(prefix, check) {
        const ids = new Set(stores.flatMap((store) => keys(store, prefix)).map((key) => key.slice(prefix.length)));
        return [...ids].filter((id) => read(prefix + id, check)).map((id) => ({...read(prefix + id, check), id}));
    }

    /** The shelf from its top, at most as long as it may be. */
    function adapters() {
        const all = entries(ADAPTER, checkAdapter);
        return all.sort((a, b) => b.place - a.place || (a.id < b.id ? 1 : -1)).slice(0, MAX_SHELF);
    }

    /** The conversations, the latest first. */
    const chats = () => entries(CHAT, checkChat).sort((a, b) => b.at - a.at);
    /** An adapter as the server reads it. */
    const told = ({name, description, strength, recipe}) => JSON.stringify({name, description, strength, recipe});
    const nameOf = (adapter) => adapter.name || adapter.description;

    function titleOf(conversation) {
        const question = conversation.turns[0]?.question.trim().replace(/\s+/g, " ") ?? "";
        return conversation.name || (question.length > 60 ? `${cut(question, 60)}…` : question) || "New conversation";
    }

    function putAdapter({id, ...adapter}) {
        write(ADAPTER + id, JSON.stringify(adapter));
    }

    /** The shelf in this order. */
    function arrange(shelf) {
        for (const [i, adapter] of shelf.entries())
            if (adapter.place !== shelf.length - i || raw(ADAPTER + adapter.id) === null)
                putAdapter({...adapter, place: shelf.length - i});
    }

    // ---- this tab: its conversation, and what is half typed ----

    let chat = {id: newId(), name: "", adapter: "", turns: []};
    let seen = null; // its text in storage when this tab last read or wrote it
    let typed = {description: "", message: "", describe: null};
    let busy = false, dropped = false; // an answer is being written; it was forgotten meanwhile
    let wanted = null, order = 0; // the description that Generate was pressed for, and how often it was
    let forgotten = 0; // the last order that nobody wants any more
    const asked = new Map(); // id of a question -> the conversation and its turns before

    const selected = () => adapters().find((adapter) => adapter.id === chat.adapter);

    function keepTab() {
        const text = JSON.stringify({...typed, chat: chat.id, adapter: chat.adapter});
        delete stores[2][TAB];
        try {
            stores[1][TAB] = text;
        } catch {
            delete stores[1][TAB];
            stores[2][TAB] = text;
            drawBounds();
        }
    }

    function keepChat(at = Date.now()) {
        // Another tab went on with it, or deleted it: this one's is then another conversation.
        if (raw(CHAT + chat.id) !== seen) chat.id = newId();
        const key = CHAT + chat.id, {id, ...rest} = chat;
        if (chat.turns.length || chat.name) write(key, JSON.stringify({...rest, at}));
        else remove(key);
        seen = raw(key);
        keepTab();
        drawChats();
        drawBounds();
    }

    function loadChat(id) {
        const key = CHAT + id;
        chat = {name: "", adapter: "", turns: [], ...read(key, checkChat), id};
        seen = raw(key);
    }

    function openChat(id, adapter = null) {
        note("#chat_note"); // an Undo there is of the conversation before
        loadChat(id);
        if (adapter !== null) chat.adapter = adapter;
        wanted = null;
        keepTab();
        draw();
        press("show");
        press("selected");
    }

    // ---- drawing ----

    function make(tag, properties, ...children) {
        const element = Object.assign(document.createElement(tag), properties);
        element.append(...children);
        return element;
    }

    function button(textContent, onclick, properties) {
        return make("button", {type: "button", textContent, onclick, ...properties});
    }

    /** A line beside its cause, with what can be done about it. */
    function note(place, text = "", ...actions) {
        const act = (does) => () => {
            note(place);
            does();
        };
        $(place).replaceChildren(text, ...actions.map(([label, does]) => button(label, act(does))));
    }

    /** A menu of [label, what it does, whether it can be done] under the button. */
    function menu(anchor, items) {
        const list = make("div", {className: "menu", popover: "auto", role: "menu", ariaLabel: anchor.ariaLabel});
        for (const [label, does, possible = true] of items) {
            const item = button(label, () => {
                list.hidePopover();
                does();
            }, {role: "menuitem", disabled: !possible});
            list.append(item);
        }
        list.onkeydown = (event) => {
            const all = [...list.querySelectorAll("button:enabled")], at = all.indexOf(document.activeElement);
            const to = {ArrowDown: at + 1, ArrowUp: at - 1 + all.length, Home: 0, End: all.length - 1}[event.key];
            if (to === undefined) return;
            event.preventDefault();
            all[to % all.length].focus();
        };
        list.ontoggle = (event) => {
            if (event.newState !== "closed") return;
            list.remove();
            anchor.ariaExpanded = "false";
        };
        $("main").append(list);
        list.showPopover({source: anchor});
        anchor.ariaExpanded = "true";
        const {right, bottom, top} = anchor.getBoundingClientRect(), {width, height} = list.getBoundingClientRect();
        list.style.left = `${Math.max(8, right - width)}px`;
        list.style.top = `${bottom + height < innerHeight ? bottom : Math.max(8, top - height)}px`;
        list.querySelector("button:enabled").focus();
    }

    /** A box in place of the element, until the new name is entered or given up. */
    function rename(element, name, back, does) {
        const box = make("input", {className: "rename", value: name, maxLength: MAX_NAME, ariaLabel: "Name"});
        let over = false;
        const end = (entered) => {
            if (over) return;
            over = true;
            box.replaceWith(element);
            if (entered && box.value.trim() && box.value !== name) does(cut(box.value.trim(), MAX_NAME));
            draw();
        };
        box.onkeydown = (event) => {
            event.stopPropagation(); // arrows move in the text
            if (event.key !== "Enter" && event.key !== "Escape") return;
            end(event.key === "Enter");
            $(back).focus();
        };
        box.onblur = () => end(true);
        element.replaceWith(box);
        box.focus();
        box.select();
    }

    function drawShelf() {
        const box = $("#shelf");
        if (box.querySelector(".rename")) return;
        const focused = box.contains(document.activeElement) ? document.activeElement.className || "radio" : null;
        const now = selected()?.id ?? "";
        const rows = [{id: "", name: NO_ADAPTER, description: ""}, ...adapters()].map((adapter) => {
            const checked = adapter.id === now, name = make("span", {textContent: nameOf(adapter)});
            if (hyperlora.lacks(adapter)) name.append(" · upload it again");
            const radio = make("input", {type: "radio", name: "adapter", className: "radio", checked});
            radio.onchange = () => select(adapter.id);
            const label = make("label", {title: adapter.description}, radio, name);
            const row = make("div", {className: "row"}, label);
            label.classList.toggle("selected", checked);
            if (adapter.id && checked) {
                const more = button("⋯", () => adapterMenu(more, label), {className: "more", ariaHasPopup: "menu"});
                more.ariaLabel = `More for ${nameOf(adapter)}`;
                row.append(more);
            }
            return row;
        });
        box.replaceChildren(...rows);
        $("#page").classList.toggle("begun", rows.length > 1);
        if (focused) (box.querySelector(`.${focused}:is(button, :checked)`) ?? box.querySelector(":checked")).focus();
        drawn();
        scroll();
    }

    /** The selected row of a long shelf is in view; the window itself stays where it is. */
    function scroll() {
        const row = $("#shelf .selected"), box = row?.closest("#shelf");
        if (!row) return;
        const {top, bottom} = row.getBoundingClientRect(), frame = box.getBoundingClientRect();
        box.scrollTop += Math.min(0, top - frame.top) + Math.max(0, bottom - frame.bottom);
    }

    function drawChats() {
        const list = $("#conversation"), all = chats();
        if (!list) return; // it is being renamed
        const here = all.find(({id}) => id === chat.id) ?? chat;
        const options = (all.includes(here) ? all : [here, ...all]).map((each) =>
            make("option", {value: each.id, textContent: titleOf(each), selected: each === here}));
        list.replaceChildren(...options);
        for (const control of [list, $("#new_chat"), $("#chat_menu")]) control.disabled = busy;
    }

    function drawBounds() {
        const shelf = adapters(), lines = [];
        if (shelf.length >= MAX_SHELF) {
            const last = nameOf(shelf.at(-1));
            lines.push(`The shelf is full: the next new adapter takes the place of “${last}”, its last.`);
        }
        if (lasts()) {
            lines.push(`This browser's room for the page is full (4 MB): what is new goes when ${lasts()}.`);
            lines.push("Delete something, or forget everything.");
        }
        $("#bounds").replaceChildren(...lines.map((textContent) => make("p", {textContent})));
        $("#do_not_keep").checked = !keeping();
    }

    function draw() {
        drawShelf();
        drawChats();
        drawBounds();
    }

    // ---- the shelf ----

    function select(id, fresh = false) {
        chat.adapter = id;
        wanted = null;
        if (seen === null) keepTab();
        else keepChat(read(CHAT + chat.id, checkChat)?.at);
        drawShelf();
        press(fresh ? "placed" : "selected"); // of a new one the status says how long it took
    }

    function change(adapter) {
        putAdapter(adapter);
        draw();
    }

    function move(adapter, step) {
        const shelf = adapters(), from = shelf.findIndex(({id}) => id === adapter.id), to = from + step;
        if (to < 0 || to >= shelf.length) return;
        shelf.splice(to, 0, ...shelf.splice(from, 1));
        arrange(shelf);
        draw();
        note("#note", `“${nameOf(adapter)}” is number ${to + 1} of ${shelf.length}.`);
    }

    function duplicate(adapter) {
        const shelf = adapters(), name = `${cut(nameOf(adapter), MAX_NAME - 7)} (copy)`;
        const copy = {...adapter, id: newId(), name};
        shelf.splice(shelf.findIndex(({id}) => id === adapter.id) + 1, 0, copy);
        arrange(shelf);
        select(copy.id);
        draw();
    }

    function removeAdapter(adapter) {
        const shelf = adapters(), at = shelf.findIndex(({id}) => id === adapter.id);
        const next = shelf[at + 1] ?? shelf[at - 1];
        remove(ADAPTER + adapter.id);
        settle();
        select(next?.id ?? "");
        draw();
        $("#shelf :checked").focus();
        note("#note", `“${nameOf(adapter)}” is deleted.`, ["Undo", () => {
            change(adapter);
            select(adapter.id);
        }]);
    }

    function adapterMenu(anchor, label) {
        const adapter = selected(), shelf = adapters(), at = shelf.findIndex(({id}) => id === adapter.id);
        menu(anchor, [
            ["Rename", () => rename(label, nameOf(adapter), "#shelf :checked", (name) => change({...adapter, name}))],
            ["Edit description", () => {
                enter("#description textarea", adapter.description);
                $("#description textarea").focus();
            }, !adapter.recipe],
            ["Copy link", () => press("share")],
            ["Duplicate", () => duplicate(adapter), shelf.length < MAX_SHELF],
            ["Move up", () => move(adapter, -1), at > 0],
            ["Move down", () => move(adapter, 1), at < shelf.length - 1],
            ["Delete", () => removeAdapter(adapter)],
        ]);
    }

    /** The text in a box of Gradio's, as if it were typed. */
    function enter(box, text) {
        $(box).value = text;
        $(box).dispatchEvent(new Event("input", {bubbles: true}));
    }

    function shelfKey(event) {
        const step = {ArrowUp: -1, ArrowDown: 1}[event.key], adapter = selected();
        if (!event.altKey || !step || !adapter) return;
        event.preventDefault();
        move(adapter, step);
    }

    // ---- links: a recipe in the URL's fragment, which no server logs ----

    let followed = "", brought = null; // the fragment that is read; what it is to, once the visitor wants that made

    /** The link to the selected adapter, copied where the browser lets us, and to be seen. */
    async function copy(text) {
        const {link, error} = JSON.parse(text);
        if (error) return note("#note", error);
        const url = location.origin + location.pathname + link;
        let said = "Copy this link:";
        try {
            await navigator.clipboard.writeText(url);
            said = "The link is copied:";
        } catch {} // not over plain HTTP
        note("#note", said);
        $("#note").append(make("input", {className: "rename", readOnly: true, value: url, ariaLabel: "Link", onfocus: (event) => event.target.select()}));
    }

    /** Once the model is there: let it read the link that the page was opened with. */
    function follow() {
        if (!location.hash.startsWith("#adapter=") || $("#generate").disabled) return;
        followed = location.hash;
        history.replaceState(null, "", location.pathname + location.search);
        press("opened");
    }

    const fragment = () => followed;

    /** What a link is to, for the visitor to read before anything is made of it. */
    function offer(text) {
        const {description, strength, recipe, error} = JSON.parse(text);
        if (error) return note("#note", error);
        const at = strength === 1 || recipe ? "" : `, at strength ${strength}`, name = recipe ? description : `“${description}”`;
        note("#note", `The link is to an adapter: ${name}${at}.`, ["Make it", () => {
            if (recipe) return hyperlora.askRecipe(recipe);
            brought = {description, strength};
            enter("#description textarea", description);
            setTimeout(() => press("generate"));
        }], ["Leave it", () => {}]);
    }

    // ---- conversations ----

    function removeChat() {
        const gone = chat, text = seen;
        remove(CHAT + gone.id);
        settle();
        openChat(newId(), gone.adapter);
        $("#conversation").focus();
        note("#chat_note", `“${titleOf(gone)}” is deleted.`, ["Undo", () => {
            write(CHAT + gone.id, text);
            if (busy) drawChats();
            else openChat(gone.id);
        }]);
    }

    /** The conversation has other turns from now on. */
    function putTurns(turns) {
        chat.turns = turns;
        keepChat();
        press("show");
    }

    function addChat(name, turns) {
        const id = newId();
        write(CHAT + id, JSON.stringify({name, adapter: chat.adapter, turns, at: Date.now()}));
        openChat(id);
    }

    function chatMenu() {
        menu($("#chat_menu"), [
            ["Rename", () => rename($("#conversation"), titleOf(chat), "#conversation", (name) => {
                chat.name = name;
                keepChat();
            })],
            ...hyperlora.files(),
            ["Delete", removeChat, seen !== null],
        ]);
    }

    // ---- what is beside the conversation: one mode at a time, each a file of its own ----

    const begins = []; // what they do once the page is there
    const draws = []; // and when the shelf, or what is selected, has changed
    const drawn = () => started && draws.forEach((draw) => draw());

    /** The mode that the page is in: "" is the conversation. */
    function turn(mode) {
        $("#page").dataset.mode = mode;
        for (const other of document.querySelectorAll("[data-mode]:is(button)"))
            other.ariaPressed = String(other.dataset.mode === mode);
        drawn();
        if (!mode) return;
        if (innerWidth < 900) $("#talk").scrollIntoView();
        $(`#${mode} :is(textarea, input:not([type=checkbox]))`)?.focus({preventScroll: true});
    }

    // ---- what is about the page ----

    /** Our own card or README over the page. */
    function show(html) {
        const panel = make("dialog", {id: "reader", ariaLabel: "About HyperLoRA", innerHTML: html});
        panel.prepend(button("×", () => panel.close(), {className: "close", ariaLabel: "Close"}));
        for (const wide of panel.querySelectorAll("table, pre")) wide.tabIndex = 0; // they scroll, by keyboard too
        panel.onclick = (event) => event.target === panel && panel.close();
        panel.onclose = () => panel.remove();
        $("main").append(panel);
        panel.showModal();
        panel.scrollTop = 0;
    }

    /** The visitor's choice of light or dark; without one, their system's. */
    function paint() {
        if (stores[0][THEME]) document.body.classList.toggle("dark", stores[0][THEME] === "dark");
        document.body.style.background = "var(--body-background-fill)"; // Gradio's is the system's
        $("#theme").ariaPressed = String(document.body.classList.contains("dark"));
    }

    function turnTheme() {
        const dark = document.body.classList.toggle("dark");
        setting(THEME, dark ? "dark" : "light");
        paint();
    }

    // ---- forgetting ----

    function forget() {
        const settings = [KEEP, FORGOTTEN, THEME];
        for (const store of stores)
            for (const key of keys(store).filter((key) => !settings.includes(key))) delete store[key];
        parsed.clear();
        asked.clear(); // what is being answered, or made, comes to nothing
        forgotten = order;
        dropped = busy;
        $("#message .stop-button")?.click();
        typed = {description: "", message: "", describe: typed.describe};
        for (const box of ["#description textarea", "#message textarea"]) enter(box, "");
        openChat(newId());
    }

    function askToForget() {
        note("#note", "Forget all adapters and conversations in this browser, in all tabs?", ["Forget", () => {
            forget();
            setting(FORGOTTEN, newId()); // other tabs hear of it
            note("#note", "All is forgotten.");
        }], ["Leave them", () => {}]);
    }

    function doNotKeep(event) {
        if (event.target.checked) setting(KEEP, "no");
        else delete stores[0][KEEP];
        settle();
        draw();
        const kept = "What is new is kept in this browser, also when the tab is closed.";
        const not = "What is new goes when this tab is closed. What was kept before stays until you forget it.";
        note("#note", keeping() ? kept : not);
    }

    function heard(event) {
        if (event.key === FORGOTTEN) return forget();
        if (event.key === KEEP) settle();
        if (event.key === THEME) paint();
        if (!busy && raw(CHAT + chat.id) !== seen) {
            const {adapter} = chat;
            loadChat(chat.id);
            chat.adapter = adapter;
            press("show");
        }
        draw();
        if (event.key === ADAPTER + chat.adapter) press("selected");
    }

    // ---- what Gradio's events call: the components' values go in, and new ones come out ----

    const update = (properties) => ({...properties, __type__: "update"});

    /** -> description, message, describe: as they were before the page was loaded again. */
    function start(...values) {
        let kept = null;
        try {
            kept = JSON.parse(raw(TAB));
        } catch {}
        const {description, message, describe} = kept ?? {};
        typed = {
            description: isText(description, LIMIT) ? description : values[0],
            message: isText(message, LIMIT) ? message : values[1],
            describe: typeof describe === "boolean" ? describe : null,
        };
        loadChat(isText(kept?.chat, 64) && kept.chat ? kept.chat : chat.id);
        if (isText(kept?.adapter, 64)) chat.adapter = kept.adapter;
        settle();
        draw();
        $("#status").role = "status";
        $("#shelf").addEventListener("keydown", shelfKey);
        // The slider says nothing of its reset.
        $("#strength").addEventListener("click", (event) => {
            if (!event.target.closest("button")) return;
            setStrength(1);
            press("selected");
        });
        $("#conversation").addEventListener("change", (event) => openChat(event.target.value));
        $("#new_chat").addEventListener("click", () => openChat(newId(), chat.adapter));
        $("#chat_menu").addEventListener("click", chatMenu);
        for (const mode of document.querySelectorAll("[data-mode]:is(button)"))
            mode.addEventListener("click", () => turn(mode.ariaPressed === "true" ? "" : mode.dataset.mode));
        for (const begin of begins) begin();
        $("#forget").addEventListener("click", askToForget);
        $("#do_not_keep").addEventListener("change", doNotKeep);
        $("#theme").addEventListener("click", turnTheme);
        window.addEventListener("storage", heard);
        window.addEventListener("hashchange", follow);
        matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint); // after Gradio, which follows it
        paint();
        started = true;
        drawn();
        return [typed.description, typed.message, typed.describe ?? values[2]];
    }
    let started = false;

    function keepTyped(name, value) {
        if (!started) return;
        typed[name] = value;
        keepTab();
        if (name === "describe") drawn();
    }

    /** What the adapter is that answers now, as the server reads it; "" is none. */
    function adapter() {
        const isWanted = (adapter) => (wanted === null ? adapter.id === chat.adapter : !adapter.recipe && adapter.description === wanted);
        const {name = "", description = wanted, strength = 1, recipe} = adapters().find(isWanted) ?? {};
        return description ? told({name, description, strength, recipe}) : "";
    }

    /** Turns as the server reads them: of the other answers to a message only what they rest on. */
    const tell = (turns) => JSON.stringify(turns.map((turn) => ({...turn, others: (turn.others ?? []).map(({how}) => how ?? "")})));
    const turns = () => tell(chat.turns);

    /** Generate is an order: its number, a space, the description. From when it is pressed, and not from when the
     * server has made the adapter, that is the one which is wanted, until it is made or another one is selected. */
    function generate(description) {
        note("#note");
        wanted = description.trim() ? description : null;
        return `${++order} ${description}`;
    }

    /** An order is done, with no description where it failed. */
    function made(text) {
        const [number, ...words] = text.split(" "), description = words.join(" ");
        const last = Number(number) === order && wanted !== null;
        if (last) wanted = null;
        if (!description || Number(number) <= forgotten) return;
        put({description, strength: brought?.description === description ? brought.strength : 1}, last, true);
    }

    /** An adapter on top of the shelf, unless one that is made of the same is there; it is selected if it `answers`. */
    function put({recipe, description, name = "", strength = 1}, answers = true, fresh = false) {
        const shelf = adapters(), same = JSON.stringify(recipe);
        let adapter = shelf.find((other) => JSON.stringify(other.recipe) === same && (recipe || other.description === description));
        if (!adapter) {
            adapter = {id: newId(), name: cut(name, MAX_NAME), description, strength, recipe};
            for (const gone of shelf.splice(MAX_SHELF - 1)) remove(ADAPTER + gone.id);
            arrange([adapter, ...shelf]);
        }
        if (answers) select(adapter.id, fresh);
        draw();
        if (answers && innerWidth < 900) $("#talk").scrollIntoView();
    }

    function failed() {
        wanted = null;
    }

    /** -> the strength of the selected adapter. */
    const strength = () => update({value: selected()?.strength ?? 1, interactive: Boolean(selected())});

    function setStrength(value) {
        const adapter = selected();
        const changed = adapter && {...adapter, strength: value};
        if (changed && checkAdapter(changed).strength === value) putAdapter(changed);
        drawn();
    }

    /** -> id of the question, adapter, describe, turns, settings, message if there is a new one: an answer begins, to
     * that, to the last message "again", or where the last answer ended: it goes "on". */
    function ask(asks, describe, message) {
        const id = newId(), told = asks === "new" ? hyperlora.followed() : chat.turns, last = chat.turns.at(-1);
        const others = {new: () => [], again: () => hyperlora.answersTo(last).slice(-MAX_OTHERS), on: () => last.others ?? []}[asks]();
        const place = {new: 0, again: others.length, on: last?.place ?? 0}[asks];
        asked.set(id, {chat, before: chat.turns, earlier: asks === "new" ? told : told.slice(0, -1), others, place, isNew: asks === "new"});
        busy = true;
        drawChats();
        return [id, adapter(), describe, tell(told), hyperlora.settings(), ...(message === undefined ? [] : [message])];
    }

    /** A turn as far as it is written. */
    function heardTurn(text) {
        const turn = JSON.parse(text), question = asked.get(turn.id);
        if (question?.chat !== chat) return; // forgotten meanwhile
        const {earlier, others, place} = question;
        chat.turns = [...earlier, {...turn, others, place}];
        if (turn.end) asked.delete(turn.id);
        keepChat();
        if (!question.isHeard) hyperlora.begun(question);
        question.isHeard = true;
    }

    function answered() {
        busy = false;
        drawChats();
        if (dropped) press("show");
        dropped = false;
        hyperlora.ended();
        drawn();
    }

    // Undo and Clear are the page's alone, so that nothing that is typed or sent meanwhile meets an older conversation.

    /** -> chat, message, Retry, Undo, Clear. */
    function undo(bubbles, message) {
        const undone = chat.turns.at(-1) ?? {question: ""};
        const buttons = Array(3).fill(update({interactive: chat.turns.length > 1}));
        chat.turns = chat.turns.slice(0, -1);
        keepChat();
        return [bubbles.slice(0, -2), message.trim() ? message : undone.question, ...buttons];
    }

    /** -> chat, Retry, Undo, Clear. */
    function clear() {
        chat.turns = [];
        keepChat();
        return [[], ...Array(3).fill(update({interactive: false}))];
    }

    /** -> description, message: an example's, which leaves a message that was typed. */
    function example(index, all, message) {
        const examples = JSON.parse(all), typed = message.trim();
        const sample = examples.some((example) => example.message === typed) || !typed;
        return [examples[index].description, sample ? examples[index].message : message];
    }

    const described = () => typed.describe;
    /** Whether the description is in the prompt too, as the visitor chose or the model was trained. */
    const describes = () => typed.describe ?? $("#in_prompt input").checked;

    return {
        start, keepTyped, adapter, turns, generate, made, failed, strength, setStrength, ask, heardTurn, answered,
        undo, clear, example, described, scroll, show, copy, follow, fragment, offer,
        // for the other files
        $, press, make, button, note, enter, cut, read, write, newId, isNumber, MAX_NAME, NO_ADAPTER,
        adapters, selected, told, nameOf, put, draw, describes, begins, draws, turn,
        LIMIT, MAX_OTHERS, isText, conversation: () => chat, isBusy: () => busy, titleOf, putTurns, addChat, checkChat,
    };
})();
