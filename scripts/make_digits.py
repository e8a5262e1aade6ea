"""Writes giung2_ext/data/sources/digits.npz from scikit-learn's copy of the UCI digits.

    pip install scikit-learn && python scripts/make_digits.py

Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository
(1998), CC BY 4.0: the 1,797 test images, 8x8, values 0..16. The order is a permutation drawn once
here (NumPy, PCG64, seed 0), so that the fixed splits, which are slices, mix all writers.
"""

import io
import pathlib
import zipfile

import numpy as np

TARGET = pathlib.Path(__file__).parents[1] / "giung2_ext/data/sources/digits.npz"


def main() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(digits.target))
    arrays = {
        "images": digits.images[order].astype(np.uint8)[..., None],
        "labels": digits.target[order].astype(np.int32),
    }
    with zipfile.ZipFile(TARGET, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue(), zipfile.ZIP_DEFLATED)
    print(f"{TARGET.name}: {len(order)} images, {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
