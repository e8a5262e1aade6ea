"""Writes torch_zip.pt and torch_older.pt: one checkpoint in both forms of torch.save (PyTorch 2.13)."""

import pathlib
from collections import OrderedDict

import torch

FOLDER = pathlib.Path(__file__).parent


def main():
    base = torch.arange(12.0).reshape(3, 4)
    state = OrderedDict(
        {
            "module.a.weight": torch.nn.Parameter(base.t()),
            "module.a.bias": base[1],
            "view": base[:, 1:3],
            "half": torch.tensor([0.5, -2], dtype=torch.bfloat16),
            "flag": torch.tensor([True, False]),
            "count": torch.tensor(7),
            "empty": torch.zeros(0, 3),
        }
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], 0.1, momentum=0.9)
    whole = {"state_dict": state, "best_acc": torch.tensor(0.75), "cfg": [0.1, 0.2]}
    whole["optimizer"] = optimizer.state_dict()
    for name, form in (("zip", True), ("older", False)):
        torch.save(whole, FOLDER / f"torch_{name}.pt", _use_new_zipfile_serialization=form)


if __name__ == "__main__":
    main()
