"""The socket types of the pack."""

from __future__ import annotations

from ..host import io

CATEGORY = "training/rollout"

Model = io.Custom("ROLLOUT_MODEL")
"""`training.model.LoadedModel`: a base model and the adapter it runs under."""
Dataset = io.Custom("ROLLOUT_DATASET")
"""`training.data.ImageDataset`: pictures and captions, not encoded."""
Data = io.Custom("ROLLOUT_DATA")
"""`training.data.LatentDataset`: latents and conditioning, ready to train on."""
LoRA = io.Custom("ROLLOUT_LORA")
"""`training.lora.LoRAConfig`."""
Optimizer = io.Custom("ROLLOUT_OPTIMIZER")
"""`training.optim.OptimizerConfig`."""
Timesteps = io.Custom("ROLLOUT_TIMESTEPS")
"""`training.sigmas.TimestepConfig`."""
LossSettings = io.Custom("ROLLOUT_LOSS")
"""`training.losses.LossConfig`."""
ScheduledSampling = io.Custom("ROLLOUT_SCHEDULED_SAMPLING")
"""`training.config.RolloutConfig`."""
ReflexFlow = io.Custom("ROLLOUT_REFLEXFLOW")
"""`training.config.ReflexFlowConfig`."""
Run = io.Custom("ROLLOUT_RUN")
"""`training.loop.Run`: a handle on one state of a run; it never changes."""
