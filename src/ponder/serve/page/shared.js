// A page that holds one trace and replays it (ponder.serve.share).

import { find } from "./dom.js";
import { Pane } from "./pane.js";

const pane = new Pane("Run", { onChange: () => {}, onClose: () => {} });
pane.close.hidden = true;
find("#stage").append(pane.root);
if (!pane.load(JSON.parse(find("#trace").textContent).join("\n"))) pane.fail("This is no trace.", "The file holds no line of a run.");

addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.target.closest("input, select, button, summary, pre")) return;
  const act = { " ": () => pane.player.toggle(), ArrowLeft: () => pane.player.step(-1), ArrowRight: () => pane.player.step(1) }[event.key];
  if (!act || !pane.run) return;
  event.preventDefault();
  act();
});
