// @ts-check
/** How a template opens: where its file says, readable, at its beginning. The front end would show all of it at once. */

import { app } from "../../scripts/app.js";

const OPENS = "rollout_trainer_opens"; // in the `extra` of our templates

/** Two frames on: the front end sets its own view in the next one where the page was still being laid out. */
const settled = () => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));

app.registerExtension({
  name: "rollout_trainer.opening",

  async afterConfigureGraph() {
    const extra = (app.rootGraph ?? app.graph).extra;
    const view = extra?.ds;
    if (!extra?.[OPENS] || !view) return;
    delete extra[OPENS]; // once; what the user makes of it opens as the user leaves it
    const show = () => {
      app.canvas.ds.scale = view.scale;
      app.canvas.ds.offset[0] = view.offset[0];
      app.canvas.ds.offset[1] = view.offset[1];
      app.canvas.setDirty(true, true);
    };
    show();
    void settled().then(show);
  },
});
