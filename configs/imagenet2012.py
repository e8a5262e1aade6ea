"""ResNet-50 on ImageNet: the recipe of the original lottery-ticket suite."""

from giung2_ext.experiments.config import default_config


def get_config():
    return default_config()
