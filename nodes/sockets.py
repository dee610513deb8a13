"""The socket types of the pack."""

from __future__ import annotations

from ..host import io

Model = io.Custom("ROLLOUT_MODEL")
"""`training.models.source.LoadedModel`: a base model and the adapter it runs under."""
AnyModel = io.Custom("ROLLOUT_MODEL,MODEL")
"""The same, or a MODEL of ComfyUI, which `comfy.as_model` makes one of."""
Dataset = io.Custom("ROLLOUT_DATASET")
"""`training.data.images.ImageDataset`: pictures and captions, not encoded."""
Data = io.Custom("ROLLOUT_DATA")
"""`training.data.dataset.LatentDataset`: latents and conditioning, ready to train on."""
AnyData = io.Custom("ROLLOUT_DATA,ROLLOUT_DATASET")
"""The same, or pictures, which `data.as_data` encodes."""
LoRA = io.Custom("ROLLOUT_LORA")
"""`training.lora.adapter.LoRAConfig`."""
Optimizer = io.Custom("ROLLOUT_OPTIMIZER")
"""`training.trainer.optim.OptimizerConfig`."""
Timesteps = io.Custom("ROLLOUT_TIMESTEPS")
"""`training.objective.timesteps.TimestepConfig`."""
LossSettings = io.Custom("ROLLOUT_LOSS")
"""`training.objective.losses.LossConfig`."""
ScheduledSampling = io.Custom("ROLLOUT_SCHEDULED_SAMPLING")
"""`training.objective.config.RolloutConfig`."""
ReflexFlow = io.Custom("ROLLOUT_REFLEXFLOW")
"""`training.objective.config.ReflexFlowConfig`."""
SamplePrompts = io.Custom("ROLLOUT_SAMPLE_PROMPTS")
"""`training.pictures.sampling.Prompts`: what is drawn while a run trains."""
Run = io.Custom("ROLLOUT_RUN")
"""`training.runs.run.Run`: a handle on one state of a run; it never changes."""
