"""As much of ComfyUI's main.py as `host/remote.py` needs: it "runs" any prompt, or behaves as MODE says."""

import argparse
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODE = os.environ.get("FAKE_MODE", "")
parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--output-directory", type=Path)
parser.add_argument("--extra-model-paths-config", type=Path)
options, others = parser.parse_known_args()
folder = Path(json.loads(options.extra_model_paths_config.read_text())["rollout_trainer"]["custom_nodes"])
assert (folder / "rollout_trainer" / "host" / "remote.py").exists()
print("fake ComfyUI", others, flush=True)
if MODE == "dies":
    raise SystemExit("no such device: abacus")

PACK = "custom_nodes.rollout_trainer" if MODE != "no pack" else "custom_nodes.other"
INFO = {
    "Foreign": {
        "input": {"required": {"size": ["INT", {"default": 4, "min": 1}], "name": [["a", "b"], {}]}},
        "output": ["IMAGE"],
        "python_module": PACK,
    },
    "SaveImage": {
        "input": {"required": {"images": ["IMAGE"], "filename_prefix": ["STRING", {"default": "x"}]}},
        "output": [],
        "output_node": True,
        "python_module": "nodes",
    },
}
history = {}
interrupted = False


def finish(prompt, extra):
    messages = []
    if MODE == "node fails":
        error = {"node_id": "1", "exception_message": "out of luck\n"}
        messages = [["execution_start", {}], ["execution_error", error]]
    options.output_directory.mkdir(parents=True, exist_ok=True)
    (options.output_directory / "made.png").write_bytes(b"png")
    if "ROLLOUT_TRAINER_REPORT" in os.environ:
        Path(os.environ["ROLLOUT_TRAINER_REPORT"]).write_text(
            json.dumps({"seed": prompt["1"]["inputs"]["size"]})
        )
    pictures = [
        {"filename": "made.png", "subfolder": "", "type": "output"},
        {"filename": "glance.png", "subfolder": "", "type": "temp"},
    ]
    title = (extra.get("extra_pnginfo") or {}).get("workflow", {}).get("id", "none")
    outputs = {"2": {"images": pictures, "text": [f"workflow {title}", str(interrupted)]}}
    history["p1"] = {"outputs": outputs, "status": {"messages": messages}}


class Handler(BaseHTTPRequestHandler):
    def answer(self, content, status=200):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path.startswith("/history"):
            if MODE == "waits" and interrupted:
                finish({"1": {"inputs": {"size": 0}}}, {})
            self.answer(history)
        elif self.path.startswith("/view"):
            self.answer(self.path.encode())
        else:
            self.answer(INFO if self.path == "/object_info" else {})

    def do_POST(self):
        global interrupted
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/interrupt":
            interrupted = True
            self.answer({})
        elif MODE == "refuses":
            error = {"message": "Value not in list", "details": "name: 'c' not in ['a', 'b']"}
            self.answer({"error": {"message": "bad"}, "node_errors": {"1": {"errors": [error]}}}, 400)
        else:
            if MODE not in ("waits", "stops"):
                finish(body["prompt"], body["extra_data"])
            print("queued", flush=True)
            self.answer({"prompt_id": "p1"})
            if MODE == "stops":
                os._exit(3)

    def log_message(self, *arguments):
        pass


time.sleep(0.05)
ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
