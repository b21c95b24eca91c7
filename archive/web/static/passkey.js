// Passkeys need script: without it, or without a device for them, their buttons stay hidden.
"use strict";
(() => {
  if (!window.PublicKeyCredential || !navigator.credentials) return;
  const bytes = (text) => Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const text = (buffer) => btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  const send = async (url, body) => {
    const answer = await fetch(url, { method: "POST", headers: { "Content-Type": "application/json" }, body, redirect: "error" });
    const said = await answer.json();
    if (said.code === "step-up") location.assign("/me/confirm?next=" + encodeURIComponent(location.pathname));
    if (!answer.ok) throw new Error([said.detail, said.remedy].filter(Boolean).join("; "));
    return said;
  };
  const known = (list) => (list || []).map((one) => ({ ...one, id: bytes(one.id) }));
  const plain = (made) => {
    const response = { clientDataJSON: text(made.response.clientDataJSON) };
    for (const name of ["attestationObject", "authenticatorData", "signature", "userHandle"]) {
      if (made.response[name]) response[name] = text(made.response[name]);
    }
    return JSON.stringify({ id: made.id, rawId: text(made.rawId), type: made.type, response, clientExtensionResults: {} });
  };
  const run = async (button) => {
    const url = button.dataset.passkey;
    const options = await send(url + "/options", "{}");
    options.challenge = bytes(options.challenge);
    if ("passkeyNew" in button.dataset) {
      options.user.id = bytes(options.user.id);
      options.excludeCredentials = known(options.excludeCredentials);
      const label = document.getElementById("label").value;
      const done = await send(url + "?label=" + encodeURIComponent(label), plain(await navigator.credentials.create({ publicKey: options })));
      if (done.recovery_codes.length) {
        const list = document.querySelector("[data-passkey-codes]");
        list.replaceChildren(...["Recovery codes, shown this once:", ...done.recovery_codes].map((code) => {
          const line = document.createElement("li");
          line.textContent = code;
          return line;
        }));
        list.hidden = false;
        button.hidden = true;
        return;
      }
    } else {
      options.allowCredentials = known(options.allowCredentials);
      await send(url, plain(await navigator.credentials.get({ publicKey: options })));
    }
    location.assign(button.dataset.next);
  };
  for (const button of document.querySelectorAll("[data-passkey]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const told = document.querySelector("[data-passkey-refusal]");
      told.hidden = true;
      try {
        await run(button);
      } catch (error) {
        told.textContent = error.name === "NotAllowedError" ? "The passkey was not used." : error.message;
        told.hidden = false;
      }
    });
  }
})();
