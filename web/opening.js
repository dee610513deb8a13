// @ts-check
/** How a template opens: where its file says, readable, at its beginning. The front end would show all of it at once. */

import { app } from "../../scripts/app.js";

const OPENS = "rollout_trainer_opens"; // in the `extra` of our templates

// The front end sets a view of its own some frames after loading, which last long where the page is busy.
const PATIENCE = 2000; // ms
const FRAMES = 20; // at least
const HANDS = ["wheel", "pointerdown", "keydown"];
let loaded = 0; // workflows

/**
 * Keep a view until the front end is done with its own, or somebody moves it, or another workflow is loaded.
 * @param {() => void} show
 */
function keep(show) {
  const [mine, until] = [loaded, performance.now() + PATIENCE];
  const done = new AbortController();
  for (const hand of HANDS) addEventListener(hand, () => done.abort(), { capture: true, signal: done.signal });
  let frames = 0;
  const again = () => {
    if (done.signal.aborted || mine !== loaded || (frames > FRAMES && performance.now() > until)) return done.abort();
    frames += 1;
    show();
    requestAnimationFrame(again);
  };
  again();
}

app.registerExtension({
  name: "rollout_trainer.opening",

  async afterConfigureGraph() {
    loaded += 1;
    const extra = (app.rootGraph ?? app.graph).extra;
    const view = extra?.ds;
    if (!extra?.[OPENS] || !view) return;
    delete extra[OPENS]; // once; what the user makes of it opens as the user leaves it
    const { scale } = view;
    const [x, y] = view.offset; // the front end may make the view's own array its own
    keep(() => {
      const { ds } = app.canvas;
      if (ds.scale === scale && ds.offset[0] === x && ds.offset[1] === y) return;
      ds.scale = scale;
      ds.offset[0] = x;
      ds.offset[1] = y;
      app.canvas.setDirty(true, true);
    });
  },
});
