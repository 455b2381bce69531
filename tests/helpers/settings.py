"""For every field of `RunConfig` a value that is not its default."""

# One value of every field that differs from the defaults; all of them together are possible too, for images or text.
OTHER = {
    "method": "constant", "model": "vgg11_bn", "width": 0.5, "data": "imagefolder:pictures of cats", "limit": 100,
    "label_column": "stars", "max_length": 64, "max_grad_norm": 2.0, "warmup": 0.2, "units": ("neurons", "heads"),
    "head_ratio": 0.25,
    "weights": "w.safetensors", "seed": 3, "epochs": 40, "search_epochs": 10, "retrain_epochs": 0,
    "retrain_from": "rewind", "optimizer": "adamw", "lr": 0.02, "momentum": 0.0, "weight_decay": 1e-4,
    "schedule": "cosine", "batch_size": 64, "accumulation": 2, "precision": "bf16", "augment": "crop-flip",
    "ratio": 0.25, "min_units": 2, "window": 3, "epsilon": 0.0, "trigger": 1.0, "chi": 0.0, "static": "window",
    "coupling": "independent", "score": "filter-l1", "sparsity_penalty": 1e-4, "check_every": 0.25, "round_to": 8,
    "force_draw": True, "device": "cpu", "track": ("tensorboard", "wandb"), "output": "elsewhere", "overwrite": True,
    "greedy_first": True, "classes": (3, 1), "validation": 50, "span": 2.0, "evaluate_every": 4,
}  # fmt: skip


# Those of one method each.
BASELINES = {
    "draw_epoch": (1.5, "rst"), "macs": (1000, "narrow"), "rounds": (5, "imp"), "rewind_epoch": (0.5, "imp"),
    "extrusion": (0.5, "rst"), "match": ("flops", "late"), "ratios": ((0.3, 0.5), "worm"), "probe_epochs": (1, "worm"),
    "half_life": (2.0, "fade"), "shrink": (True, "fade"),
}  # fmt: skip


TEXT = {
    **OTHER, "task": "text", "model": "owner/encoder", "data": "csv:reviews of films.csv", "optimizer": "sgd",
    "schedule": "step", "augment": "none", "greedy_first": False, "text_columns": ("title", "review"),
    "window": 4, "check_every": 0.5,
}  # fmt: skip


# What a field needs beside it to be possible.
WITH = {
    "task": {"model": "owner/network", "data": "owner/data", "units": ("heads",)},
    "head_ratio": {"units": ("heads", "neurons")},
    "text_columns": {"task": "text", "model": "owner/network", "data": "csv:f", "units": ("heads",)},
    **{name: {"method": method} for name, (_, method) in BASELINES.items()},
}  # fmt: skip
