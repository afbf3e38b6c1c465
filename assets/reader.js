// A file, or pasted lines, in a panel: read and bounded in the browser.
{
    /** What is given in the panel, for the server: its name, and its bytes in base64. `changed` hears of it, `say` of
     * what cannot be taken; `wait` is in milliseconds after the last key. */
    function reader(panel, changed, say, wait) {
        const [file, box] = ["input[type=file]", "textarea"].map((part) => panel.querySelector(part));
        const limit = Number(file.dataset.limit), chosen = panel.querySelector(".chosen"), hint = chosen.textContent;
        const tooLarge = () => say(`The file is larger than ${limit >> 20} MB: take a part of it.`, "error");
        let latest = 0, typing = 0;

        async function give(blob, name) {
            const mine = ++latest;
            changed(null);
            say("");
            if (blob.size > limit) return tooLarge();
            if (!blob.size && !name) return;
            const read = new FileReader();
            await new Promise((resolve) => {
                read.onloadend = resolve;
                read.readAsDataURL(blob);
            });
            if (mine !== latest) return; // another one meanwhile
            if (read.error) return say("The file cannot be read: choose it again.", "error");
            changed({name, data: read.result.split(",")[1] ?? ""});
        }

        function pick(picked) {
            if (!picked) return;
            panel.classList.add("picked");
            chosen.textContent = picked.name;
            give(picked, picked.name);
        }

        function paste() {
            clearTimeout(typing);
            typing = setTimeout(() => give(new Blob([box.value]), ""), wait);
        }

        file.addEventListener("change", () => pick(file.files[0]));
        panel.addEventListener("dragover", (event) => event.preventDefault());
        panel.addEventListener("drop", (event) => {
            event.preventDefault();
            pick(event.dataTransfer.files[0]);
        });
        box.addEventListener("input", paste);
        box.addEventListener("paste", (event) => { // one that is too large does not get as far as the box
            if (event.clipboardData.getData("text").length <= limit) return;
            event.preventDefault();
            tooLarge();
        });
        panel.querySelector(".unpick").addEventListener("click", () => {
            panel.classList.remove("picked");
            chosen.textContent = hint;
            file.value = "";
            box.focus();
            paste();
        });
    }

    hyperlora.reader = reader;
}
