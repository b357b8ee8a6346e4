"""Imports of the commands, done once by the process that forks them all: helpers.Command."""

import matplotlib.figure  # noqa: F401
import torch
import torchvision  # noqa: F401

import utils.training.run  # noqa: F401

torch.ones(1, requires_grad=True).sum().backward()  # a fork after torch.export's imports could not
