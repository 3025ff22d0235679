// An application that takes no event before it is told to: `late.mjs URL`. It prints what it heard.
import { Session } from "../../examples/javascript/dalston.js";

const session = new Session(process.argv[2], { sample_rate: 8000 });
await new Promise((resolve) => process.stdin.once("data", resolve));
process.stdin.destroy();
const heard = { kinds: {}, last: null, failed: null };
try {
  for await (const event of session) {
    heard.kinds[event.type] = 1 + (heard.kinds[event.type] ?? 0);
    if (event.type === "transcript.partial") heard.last = event.end;
  }
} catch (error) {
  heard.failed = error.message;
}
console.log(JSON.stringify(heard));
