// What there is to know of the selected adapter, looked at while this mode is open.
{
    const {$, press, adapters, told} = hyperlora;
    let seen = null; // what was looked at last

    /** -> adapter, shelf. */
    const look = () => [hyperlora.adapter(), JSON.stringify(adapters().map(told))];

    /** -> adapter, describe, turns, settings. */
    const lookAt = () => [
        hyperlora.adapter(), hyperlora.describes(), hyperlora.turns(), hyperlora.settings(),
    ];

    hyperlora.draws.push(() => {
        if ($("#page").dataset.mode !== "understand") return void (seen = null);
        const now = JSON.stringify([look(), lookAt()]);
        if (now === seen) return;
        seen = now;
        press("look");
    });
    hyperlora.begins.push(() => Object.assign($("#understand"), {tabIndex: 0, role: "region", ariaLabel: "About the adapter"}));
    Object.assign(hyperlora, {look, lookAt});
}
