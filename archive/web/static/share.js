// Opens a share link: what stands behind # stays here until its reader asks to open it, then leaves the address bar for good.
"use strict";
(() => {
  const shown = (id) => document.getElementById(id);
  const link = location.hash.slice(1);
  if (link) history.replaceState(null, "", location.pathname);
  addEventListener("hashchange", () => location.reload());
  const refuse = (text) => {
    shown("refusal").textContent = text;
    shown("refusal").hidden = !text;
  };
  if (!link) {
    refuse("Open the link again from the message you were given.");
    return;
  }
  const gone = "This link opens nothing any more. Ask whoever shared it for a new one.";
  const send = async (path, body) => {
    const answer = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), redirect: "error",
    });
    const said = await answer.json();
    if (answer.ok) return said;
    throw new Error(answer.status === 404 ? gone : [said.detail, said.remedy].filter(Boolean).join("; ") + ".");
  };
  const guarded = (work) => async (event) => {
    event.preventDefault();
    refuse("");
    try {
      await work();
    } catch (error) {
      refuse(error.message.slice(0, 1).toUpperCase() + error.message.slice(1));
    }
  };
  shown("begin").hidden = false;
  shown("open").addEventListener("click", guarded(async () => {
    const said = await send("/s/open", { link });
    let how = "Type the code that you were told by whoever shared the images.";
    if (said.code_by === "mail") how = (said.sent ? "A code was sent to " : "A code was sent a while ago to ") + said.hint + ". It counts for ten minutes.";
    shown("how").textContent = how;
    shown("begin").hidden = true;
    shown("enter").hidden = false;
    shown("code").focus();
  }));
  shown("enter").addEventListener("submit", guarded(async () => {
    const said = await send("/s/code", { link, code: shown("code").value });
    location.replace(said.next);
  }));
})();
