"""Every kind of image file and array as the pixels it should become; each bad one's message."""

import numpy as np
import pytest
from PIL import Image

from iadd_lab.data import pixels
from iadd_lab.data.pixels import channels_of, decode_file, planes_of, resize_arrays
from tests.samples import assert_refused, load, make_tree, noise, save


def only_image(tmp_path, pixels, *, name="image.png", size=4, channels=None, **options):
    """`pixels` as the one test image, loaded: (channels, size, size)."""
    root = tmp_path / "mine"
    for part, count in (("train", 2), ("test", 1)):
        make_tree(root / part, ("grey", "other"), count=count, shape=(4, 4), suffix=".bmp")
    (root / "test/grey/000.bmp").unlink()
    save(root / "test" / "grey" / name, pixels, **options)
    return load("image_folder", root, size=size, channels=channels).test.images[0].numpy()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 257], [1000, 25_700, 30_000, 32_768], [65_535] * 4, [40_000] * 4])
    got = only_image(tmp_path, values.astype(np.uint16), channels=1)
    assert np.array_equal(got[0], np.rint(values / 257))
    assert only_image(tmp_path / "b", values.astype(np.uint16)).shape == (1, 4, 4)  # grey by itself


@pytest.mark.parametrize(("value", "dtype"), [(1e6, np.float32), (70_000, np.int32)])
def test_pixels_of_unknown_range_are_refused(tmp_path, value, dtype):
    values = np.full((4, 4), value, dtype)
    assert_refused("image.tif has pixels beyond 16 bits", only_image, tmp_path, values, name="image.tif")


def test_transparent_pixels_are_white(tmp_path):
    pixels = np.zeros((4, 4, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[:2, :, 3] = 255
    got = only_image(tmp_path, pixels)
    assert (got[:, :2] == np.array([200, 0, 0]).reshape(3, 1, 1)).all()
    assert (got[:, 2:] == 255).all()


def test_palettes_one_bit_and_colour_to_grey(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8).repeat(2, 0).repeat(2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    for options, second in (({}, [200, 100, 50]), ({"transparency": bytes([255, 0])}, [255, 255, 255])):
        assert only_image(tmp_path, image, **options)[:, 0, [0, 3]].T.tolist() == [[10, 20, 30], second]
    image = Image.fromarray(np.eye(4, dtype=np.uint8) * 255).convert("1")
    assert np.array_equal(only_image(tmp_path / "a", image)[0], np.eye(4) * 255)
    red = np.zeros((4, 4, 3), dtype=np.uint8)
    red[..., 0] = 255
    assert (only_image(tmp_path / "b", red, channels=1) == 76).all()  # ITU-R 601 luma


def test_the_middle_of_an_oblong_image_is_kept(tmp_path):
    wide = np.zeros((8, 24), dtype=np.uint8)
    wide[:, 8:16] = 200
    assert (only_image(tmp_path, wide, size=8) == 200).all()
    assert (only_image(tmp_path / "b", wide.T.copy(), size=8) == 200).all()
    half = only_image(tmp_path / "c", noise((8, 24)), size=4)[0].astype(int)
    expected = np.asarray(Image.fromarray(noise((8, 24))).resize((12, 4), Image.Resampling.BILINEAR))[:, 4:8]
    assert np.abs(half[:, 1:3] - expected[:, 1:3]).max() <= 1  # the filter's support ends at the crop


def test_a_large_jpeg_is_reduced_faithfully(tmp_path):
    ramp = np.linspace(0, 255, 512).astype(np.uint8)
    got = only_image(tmp_path, np.tile(ramp, (512, 1)), name="image.jpg", size=16)[0].astype(int)
    assert np.abs(got - np.linspace(8, 247, 16)).max() < 4


def test_exif_orientation_is_honoured_and_damaged_exif_does_not_matter(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    pixels = np.zeros((4, 4), dtype=np.uint8)
    pixels[0] = 255
    assert np.array_equal(only_image(tmp_path, pixels, exif=exif)[0], np.rot90(pixels, -1))
    opened = Image.open(tmp_path / "mine/test/grey/image.png")
    assert np.array_equal(planes_of(opened, 4, 1)[0], np.rot90(pixels, -1))
    assert np.array_equal(np.asarray(opened), pixels)  # what was opened stays as it was
    wrong = b"Exif\x00\x00nonsense"
    assert only_image(tmp_path / "b", noise((4, 4)), name="image.jpg", exif=wrong).shape == (1, 4, 4)


@pytest.mark.parametrize(
    "suffix", [".jpg", ".JPEG", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2"]
)
def test_every_image_type(tmp_path, suffix):
    got = only_image(tmp_path, np.full((4, 4, 3), 90, dtype=np.uint8), name=f"image{suffix}")
    assert np.abs(got.astype(int) - 90).max() <= 3


def test_undecodable_and_oversized_images_and_dead_links_are_named(tmp_path, monkeypatch):
    root = make_tree(tmp_path / "mine", shape=(64, 64, 3))
    path = root / "cat" / "003.png"
    whole = path.read_bytes()
    for bad in (b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", whole[:-2000]):
        path.write_bytes(bad)
        assert_refused(r"003\.png can't be decoded .*remove or replace it", load, "image_folder", root)
    path.write_bytes(whole)
    with monkeypatch.context() as patch:
        patch.setattr(pixels, "LARGEST_PIXELS", 1000)
        assert_refused(r"has 64×64 pixels, but at most 1000 are decoded", load, "image_folder", root)
    (root / "cat" / "dead.png").symlink_to(root / "nowhere.png")
    assert_refused(r"dead\.png", load, "image_folder", root)


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 4, 4, 3)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [4, 8])
def test_arrays_become_the_pixels_of_their_files(tmp_path, shape, channels, size):
    images = noise(shape)
    planes = resize_arrays(images, size, channels)
    assert planes.flags.c_contiguous
    for index, image in enumerate(images):
        path = tmp_path / f"{index}.png"
        save(path, image)
        assert np.array_equal(planes[index], decode_file(str(path), size, channels))


def test_what_cannot_be_opened_speaks_for_grey(tmp_path):
    save(tmp_path / "grey.png", noise((4, 4)))
    save(tmp_path / "colour.png", noise((4, 4, 3)))
    (tmp_path / "bad.png").write_bytes(b"not an image")
    assert [path.stem for path in tmp_path.iterdir() if channels_of(str(path)) == 3] == ["colour"]
