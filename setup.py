from pathlib import Path

from setuptools import find_packages, setup

GCS = ["gcsfs>=2026.9", "google-cloud-storage>=3.10"]  # of epath, and of orbax

setup(
    name="giung2_ext",
    version="0.1.0",
    description="Sparse networks in JAX and Flax: find, train, evaluate and ship lottery tickets",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["giung2_ext", "giung2_ext.*"]),
    package_data={
        "giung2_ext.data": ["imagenet_classes.txt"],
        "giung2_ext.data.sources": ["digits.npz"],
        "giung2_ext.reports": ["page.html", "page.css", "page.js"],
    },
    install_requires=[
        # Training on arrays needs these six; the rest is imported where it is used.
        "jax>=0.10.2,<0.13",
        "flax>=0.12.8,<0.14",
        "optax>=0.2.8,<0.4",
        "orbax-checkpoint>=0.12.8,<0.14",  # with tensorstore
        "ml-collections>=1.1.0,<2",
        "numpy>=2.1",
        "etils[epath]>=1.12",  # with fsspec
        "clu>=0.0.12",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "grain>=0.2.18",
        "safetensors>=0.5",
        "simplejpeg>=1.9",  # libjpeg-turbo, with its scaled decoding
        "opencv-python-headless>=4.10",
        "pillow>=11",  # what is no plain JPEG
        "altair>=6",  # the report: its charts,
        "vl-convert-python>=1.9",  # their files and the library that draws them on the page,
        "jinja2>=3.1",  # and the text around them
        "tqdm>=4.66",
    ],
    extras_require={
        "test": ["pytest>=8", "pytest-xdist>=3.8", "ruff>=0.15", "mypy>=1.19", "submitit>=1.5", *GCS],
        "gcs": GCS,
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda12]"],
        "tensorboard": ["tensorboardX>=2.6"],
        "wandb": ["wandb>=0.20"],
        "browser": ["playwright>=1.50"],  # to test the page in Debian's chromium; downloads no browser
        "sweep": ["submitit>=1.5"],
        "torch": ["torch>=2.6"],
        "tensorflow": ["tensorflow-cpu>=2.21"],
    },
)
