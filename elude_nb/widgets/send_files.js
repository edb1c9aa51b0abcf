// Send files to the kernel, in parts: Jupyter's server closes the connection at a message of more than 10 MiB. What
// cannot be sent is named. This stands before the script of each control that takes files.
const PART = 4 * 2 ** 20;

async function sendFiles(model, files) {
  for (const file of files) {
    let begun = false;
    const refuse = (why) => model.send({ kind: "refused", name: file.name, begun, why });
    if (file.size > model.get("most_bytes")) {
      refuse(`has ${file.size.toLocaleString("en")} bytes; at most ${model.get("most_bytes").toLocaleString("en")} are taken.`);
      continue;
    }
    try {
      for (let start = 0; start === 0 || start < file.size; start += PART) {
        const part = await file.slice(start, start + PART).arrayBuffer();
        model.send({ kind: "part", name: file.name, start }, undefined, [part]);
        begun = true;
      }
    } catch (error) { // a folder, or a file that was moved meanwhile
      refuse(`cannot be read by this browser (${error.message}); choose a file.`);
    }
  }
  model.send({ kind: "end" });
}
