// @ts-check
/** What the scripts know of the Python side. Written by tools/make_web_facts.py; do not edit. */

/**
 * Solvers by name: model calls of a step, and whether the setting `order` changes anything.
 * @type {{ [name: string]: { callsPerStep: number, hasOrder: boolean } | undefined }}
 */
export const SOLVERS = {
  "unipc": { callsPerStep: 1, hasOrder: true },
  "euler": { callsPerStep: 1, hasOrder: false },
  "dpm": { callsPerStep: 1, hasOrder: true },
  "rk4": { callsPerStep: 4, hasOrder: false },
};

/** The losses that a chart draws, in that order: columns of a run's curve. */
export const LOSSES = ["base", "fc", "adr", "validation"];

/**
 * By recipe and settings node: the widgets whose values are not the node's own.
 * @type {{ [recipe: string]: { [node: string]: { [widget: string]: string | number } } | undefined }}
 */
export const RECIPES = {
  "SDXL: style": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {}, "RolloutLossSettings": {"min_snr_gamma": 5.0}},
  "SDXL: subject": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {}, "RolloutLossSettings": {"min_snr_gamma": 5.0}},
  "SD3.5: style": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid"}, "RolloutLossSettings": {}},
  "SD3.5: subject": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid"}, "RolloutLossSettings": {}},
  "Flux dev: style": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "logit_normal"}, "RolloutLossSettings": {}},
  "Flux dev: subject": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "logit_normal"}, "RolloutLossSettings": {}},
  "Flux Kontext: edit": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "logit_normal"}, "RolloutLossSettings": {}},
  "Flux.2 dev: style": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"learning_rate": 3e-05, "warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "logit_normal"}, "RolloutLossSettings": {}},
  "Flux.2 dev: subject": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"learning_rate": 3e-05, "warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "logit_normal"}, "RolloutLossSettings": {}},
  "Flux.2 dev: edit": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"learning_rate": 3e-05, "warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "logit_normal"}, "RolloutLossSettings": {}},
  "Flux.2 Klein: style": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "logit_normal"}, "RolloutLossSettings": {}},
  "Flux.2 Klein: subject": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "logit_normal"}, "RolloutLossSettings": {}},
  "Flux.2 Klein: edit": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "logit_normal"}, "RolloutLossSettings": {}},
  "Chroma: style": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid"}, "RolloutLossSettings": {}},
  "Chroma: subject": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid"}, "RolloutLossSettings": {}},
  "Qwen-Image: style": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"learning_rate": 5e-05, "warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 0.8}, "RolloutLossSettings": {}},
  "Qwen-Image: subject": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"learning_rate": 5e-05, "warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 0.8}, "RolloutLossSettings": {}},
  "Qwen-Image-Edit: edit": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"learning_rate": 5e-05, "warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 0.8}, "RolloutLossSettings": {}},
  "Z-Image: style": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 0.7}, "RolloutLossSettings": {}},
  "Z-Image: subject": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 0.7}, "RolloutLossSettings": {}},
  "Z-Image Turbo: style": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 0.7}, "RolloutLossSettings": {}},
  "Z-Image Turbo: subject": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 0.7}, "RolloutLossSettings": {}},
  "Lumina 2: style": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "logit_normal"}, "RolloutLossSettings": {}},
  "Lumina 2: subject": {"RolloutLoRASettings": {}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "logit_normal"}, "RolloutLossSettings": {}},
  "HiDream: style": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"learning_rate": 0.0002, "warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid"}, "RolloutLossSettings": {}},
  "HiDream: subject": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"learning_rate": 0.0002, "warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid"}, "RolloutLossSettings": {}},
  "Krea 2: style": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 0.9}, "RolloutLossSettings": {}},
  "Krea 2: subject": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 0.9}, "RolloutLossSettings": {}},
  "Anima: style": {"RolloutLoRASettings": {"rank": 8, "alpha": 8.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid"}, "RolloutLossSettings": {}},
  "Anima: subject": {"RolloutLoRASettings": {"rank": 8, "alpha": 8.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid"}, "RolloutLossSettings": {}},
  "Wan 2.1: style": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1}, "RolloutLossSettings": {}},
  "Wan 2.1: subject": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1}, "RolloutLossSettings": {}},
  "Wan 2.1: video": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1}, "RolloutLossSettings": {}},
  "Wan 2.2 5B: style": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1}, "RolloutLossSettings": {}},
  "Wan 2.2 5B: subject": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1}, "RolloutLossSettings": {}},
  "Wan 2.2 5B: video": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1}, "RolloutLossSettings": {}},
  "Wan 2.2 14B high noise, text: style": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1, "sigma_low": 0.875}, "RolloutLossSettings": {}},
  "Wan 2.2 14B high noise, text: subject": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1, "sigma_low": 0.875}, "RolloutLossSettings": {}},
  "Wan 2.2 14B high noise, text: video": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1, "sigma_low": 0.875}, "RolloutLossSettings": {}},
  "Wan 2.2 14B low noise, text: style": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1, "sigma_high": 0.875}, "RolloutLossSettings": {}},
  "Wan 2.2 14B low noise, text: subject": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1, "sigma_high": 0.875}, "RolloutLossSettings": {}},
  "Wan 2.2 14B low noise, text: video": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1, "sigma_high": 0.875}, "RolloutLossSettings": {}},
  "Wan 2.2 14B high noise, image: video": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1, "sigma_low": 0.9}, "RolloutLossSettings": {}},
  "Wan 2.2 14B low noise, image: video": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 1.1, "sigma_high": 0.9}, "RolloutLossSettings": {}},
  "HunyuanVideo 1.5: style": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 0.7}, "RolloutLossSettings": {}},
  "HunyuanVideo 1.5: subject": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 0.7}, "RolloutLossSettings": {}},
  "HunyuanVideo 1.5: video": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid", "mean": 0.7}, "RolloutLossSettings": {}},
  "LTX-2: style": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid"}, "RolloutLossSettings": {}},
  "LTX-2: video": {"RolloutLoRASettings": {"rank": 32, "alpha": 32.0}, "RolloutOptimizerSettings": {"warmup_steps": 50}, "RolloutTimestepSettings": {"distribution": "sigmoid"}, "RolloutLossSettings": {}},
};
