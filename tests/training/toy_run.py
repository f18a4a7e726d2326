"""A training run small enough to be killed often: dropout, shuffled data, evaluations, samples, state between steps."""

import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from wukong.seeds import permutation
from wukong.training.checkpoint import _tensors
from wukong.training.session import Session, TrainOptions

RECORDS = 24


class ToyOptions(TrainOptions):
    steps: int = 12
    eval_every: int = 5
    dropout: float = 0.3
    lr: float = 0.05
    weight_decay: float = 0.1
    log_every: int = 2
    checkpoint_seconds: float = 1e9
    tensorboard: bool = False
    precision: Any = "float32"


def make_modules(options: ToyOptions) -> dict[str, nn.Module]:
    torch.manual_seed(options.seed)
    body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(options.dropout), nn.LayerNorm(16))
    return {"body": body, "head": nn.Linear(16, 1)}


def toy_run(options: ToyOptions, on_step=None) -> Session:
    """Trains; then the final weights, moments and state lie in out/final.safetensors and in the session returned.

    on_step(session, step) is called before each update.
    """
    torch.set_num_threads(1)
    data = torch.randn(RECORDS, 7, generator=torch.Generator().manual_seed(1))
    modules = make_modules(options)
    state = {"kl_coef": 0.1, "seen": []}
    with Session(options, modules, options.steps, "toy", state, lr=options.lr or 1e-3) as session:
        for step in session.steps():
            for module in modules.values():
                module.train()
            rows = permutation(RECORDS, options.seed, "epoch", step // 3)[step % 3 * 8 :][:8]
            session.state["seen"].append([int(row) for row in rows])
            session.state["kl_coef"] *= 1.1
            total = 0.0
            for part in torch.from_numpy(rows).split(3):
                with session.compute.autocast():
                    found = modules["head"](modules["body"](data[part, :6])).squeeze(1)
                loss = (found.float() - data[part, 6]).square().sum() / len(rows)
                session.backward(loss)
                total += loss.item()
            if on_step:
                on_step(session, step)
            norms = session.optimizer_step()
            session.log(len(rows), loss=total, **norms)
            if session.due(options.eval_every):
                for module in modules.values():
                    module.eval()
                with torch.no_grad():
                    found = modules["head"](modules["body"](data[:, :6])).squeeze(1)
                held_out = float((found - data[:, 6]).square().mean())
                session.log(valid_loss=held_out)
                session.keep_best(held_out)
                session.sample(text=f"at step {step}")
            session.show(loss=total)
        last = {name: tensor.clone() for name, tensor in _tensors(modules, session.optimizer).items()}
        session.restore_best()
    best = {name: tensor.clone() for name, tensor in _tensors(modules, session.optimizer).items()}
    save_file({f"last/{k}": v for k, v in last.items()} | {f"best/{k}": v for k, v in best.items()}, path(options))
    return session


def slowly(session: Session, step: int) -> None:
    """An `on_step` that leaves time for being stopped in."""
    time.sleep(0.01)


def path(options: ToyOptions) -> Path:
    return options.out / "final.safetensors"
