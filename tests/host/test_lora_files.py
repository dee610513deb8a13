"""LoRA files of other trainers act in the pack as in the stock loader, whose key map decides."""

import pytest
from prompt_builder import PromptBuilder
from test_models import Host, host  # noqa: F401

FORMS = {
    "sd3": (
        "diffusion_model.",
        "lora_unet_",
        "transformer.",
        "base_model.model.",
        "lora_transformer_",
        "lycoris_",
    ),
    "flux": (
        "diffusion_model.",
        "lora_unet_",
        "transformer.",
        "lora_transformer_",
        "lycoris_",
        "single_transformer_",
    ),
    "wan": ("diffusion_model.", "lora_unet_"),
    "sd15": ("lora_unet_", "unet.", "lycoris_"),
}


def compared(host: Host, family: str, start: str, ends: str, kind: str = "lora") -> dict[str, float]:  # noqa: F811
    graph = PromptBuilder()
    base = graph.add("TestTinyModel", family=family, dtype="float32")
    source = graph.add("RolloutFromComfyModel", model=base)
    latents = graph.add("TestTinyData", family=family, n=2)
    node, _ = graph.add(
        "TestLoRAForms", base=base, model=source, latents=latents, conditioning=[latents[0], 1], start=start,
        ends=ends, kind=kind,
    )  # fmt: skip
    shown = host.run(graph)[str(node)]
    return {name: values[0] for name, values in shown.items()}


@pytest.mark.parametrize(("family", "start"), [(f, s) for f, starts in FORMS.items() for s in starts])
def test_a_file_acts_as_in_the_stock_loader(family, start, host):  # noqa: F811
    found = compared(host, family, start, "kohya" if "_" in start else "peft")
    if not found["layers"]:  # this host has no such name: its own loader leaves the file out, and so do we
        assert found["changed"] == 0
        assert "must fit the model" in found["told"]
        return
    assert found["layers"] > 2
    assert found["effect"] > 1e-3
    assert found["difference"] < 1e-3 * max(found["effect"], 1), found


@pytest.mark.parametrize("family", ["sd3", "flux", "wan"])
def test_a_dora_acts_as_in_the_stock_loader(family, host):  # noqa: F811
    found = compared(host, family, "diffusion_model.", "kohya", "dora")
    assert found["effect"] > 1e-3
    assert found["difference"] < 1e-3 * max(found["effect"], 1), found
