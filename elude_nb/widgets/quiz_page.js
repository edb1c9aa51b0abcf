"use strict";
// The page on which a class answers. All text reaches it as text.
const { questions, names } = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const who = sessionStorage.getItem("elude-who") ?? crypto.getRandomValues(new Uint32Array(4)).join("-");
const tally = Object.fromEntries(Object.keys(names).map((kind) => [kind, [0, 0]]));
let at = Number(sessionStorage.getItem("elude-at") ?? 0), since = 0, waiting = false;
try {
  sessionStorage.setItem("elude-who", who); // a reload goes on where it was
} catch { /* the browser keeps nothing: a reload begins anew */ }
byId("player").value = sessionStorage.getItem("elude-player") ?? "";

function ask() {
  if (at >= questions.length) return finish();
  waiting = true;
  byId("title").textContent = at ? `Question ${at} of ${questions.length - 1}` : "To practise (not counted)";
  byId("said").textContent = "";
  byId("next").hidden = true;
  byId("choices").replaceChildren(...questions[at].map((src, place) => {
    const button = document.createElement("button"), picture = document.createElement("img");
    Object.assign(picture, { src, alt: `image ${place + 1}` });
    button.type = "button";
    button.append(picture, document.createElement("span"));
    button.addEventListener("click", () => answer(place));
    return button;
  }));
  since = performance.now();
}

async function answer(place) {
  if (!waiting) return;
  waiting = false;
  const said = { who, player: byId("player").value, question: at, answer: place, seconds: (performance.now() - since) / 1000 };
  let found;
  try {
    const reply = await fetch("answer", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(said) });
    if (!reply.ok) throw new Error(await reply.text());
    found = await reply.json();
  } catch (error) {
    byId("said").textContent = `The answer did not arrive (${error.message}). Choose again.`;
    waiting = true;
    return;
  }
  [...byId("choices").children].forEach((button, i) => {
    button.disabled = true;
    button.className = i === found.intruder ? "odd" : i === found.answer ? "wrong" : "";
    button.lastChild.textContent = i === found.intruder ? "did not belong" : i === found.answer ? "your choice" : "";
  });
  if (at) {
    tally[found.kind][0] += found.right;
    tally[found.kind][1] += 1;
  }
  byId("said").textContent = `${found.right ? "Right" : "Wrong"}: image ${found.intruder + 1} did not belong. It was about ${found.about}.`;
  at += 1;
  try {
    sessionStorage.setItem("elude-at", at);
    sessionStorage.setItem("elude-player", byId("player").value);
  } catch { /* as above */ }
  byId("next").textContent = at < questions.length ? "next question" : "to your result";
  byId("next").hidden = false;
  byId("next").focus();
}

function finish() {
  byId("title").textContent = "That was the last question. Thank you!";
  byId("choices").replaceChildren();
  byId("next").hidden = true;
  const mine = Object.entries(tally).filter(([, [, count]]) => count).map(([kind, [right, count]]) => `${names[kind]}: ${right} of ${count}`);
  byId("said").textContent = mine.length ? `You found the odd image for ${mine.join("; ")}.` : "";
}

byId("next").addEventListener("click", () => {
  ask();
  byId("title").focus();
});
ask();
