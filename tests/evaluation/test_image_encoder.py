"""Images of every kind have the embeddings of a plain reference, and those of the search."""

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps

import gsg_jax
from gsg_jax.search import command as search
from tests.small import save_untrained, small_config

SIZE = 12


def random_pixels(rng, height, width, *channels):
    """A smooth image, so that the resizing matters little."""
    small = rng.integers(0, 256, (4, 5, *channels)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Files of every kind, each of a size of its own; a number that eight devices do not divide."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    colour = [Image.fromarray(random_pixels(rng, 30 + n, 41 - 2 * n, 3)) for n in range(11)]
    (folder / "deeper").mkdir()
    colour[0].save(folder / "a.jpg")
    colour[1].save(folder / "b turned.jpg", exif=turned)
    colour[2].convert("CMYK").save(folder / "c cmyk.jpg")
    colour[3].convert("L").save(folder / "d grey.png")
    colour[4].convert("P").save(folder / "e palette.png")
    deep = rng.integers(0, 2**16, (25, 33)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "f 16 bits.png")
    colour[5].putalpha(Image.fromarray(random_pixels(rng, *colour[5].size[::-1])))
    colour[5].save(folder / "g transparent.png")
    for n in range(6, 11):
        colour[n].save(folder / "deeper" / f"{n:02}.webp")
    return folder


@pytest.fixture(scope="module")
def paths(photos):
    """The files in the order of the folder: files first, then the folders in it."""
    return sorted(photos.glob("*.*")) + sorted((photos / "deeper").iterdir())


def made(folder, channels, crop):
    config = small_config("simsiam_gsg")
    config.data.crop = crop
    config.views.update({"mean": (0.3, 0.4, 0.5)[:channels], "std": (0.2, 0.3, 0.25)[:channels]})
    return save_untrained(folder, config, channels)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "colour": made(folder / "colour", 3, "host"),
        "grey": made(folder / "grey", 1, "device"),
    }


@pytest.fixture(scope="module")
def encoder(runs):
    return gsg_jax.load(runs["colour"])


def reference(encoder, pictures, short):
    """Embeddings of Pillow's images: resized to a short side, cut, normalised, one by one."""
    views, network = encoder.config.views, encoder.encoder
    mean, std = (np.float32(value)[None, None, None, :] for value in (views.mean, views.std))
    variables = {"params": network.params, "batch_stats": network.batch_stats}
    apply = jax.jit(lambda image: network.backbone.apply(variables, image, train=False))
    rows = []
    for picture in pictures:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I"):
            picture = Image.fromarray((np.asarray(picture).astype(int) // 256).astype(np.uint8))
        if picture.mode == "RGBA":
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = picture.convert("RGB" if encoder.channels == 3 else "L")
        scale = short / min(picture.size)
        sides = [max(short, int(side * scale)) for side in picture.size]
        picture = picture.resize(sides, Image.Resampling.BILINEAR)
        left, top = (round((side - SIZE) / 2) for side in sides)
        pixels = np.asarray(picture.crop((left, top, left + SIZE, top + SIZE)))
        pixels = pixels.reshape(1, SIZE, SIZE, -1) / np.float32(255)
        rows.append(np.asarray(apply((pixels - mean) / std))[0])
    return np.stack(rows)


@pytest.mark.parametrize(("name", "short"), [("colour", 14), ("grey", SIZE)])
def test_every_kind_of_file_is_embedded_as_by_a_plain_reference(runs, paths, name, short):
    encoder = gsg_jax.load(runs[name])
    h = encoder.embed(paths)
    assert h.dtype == np.float32 and h.shape == (len(paths), encoder.width) and len(h) % 8
    opened = [Image.open(path) for path in paths]
    np.testing.assert_allclose(h, reference(encoder, opened, short), rtol=0, atol=2e-5)
    np.testing.assert_array_equal(encoder.embed(opened), h)
    assert np.abs(h - h[0]).max(axis=1)[1:].min() > 1e-3  # the images do differ


def test_a_folder_has_the_embeddings_of_the_search(runs, encoder, photos, paths, capsys):
    assert search.main([str(runs["colour"]), "--outliers", "--k=2", f"--folder={photos}"]) == 0
    (index,) = (runs["colour"] / "search").glob("*.npz")
    with np.load(index) as arrays:
        assert [photos / name for name in arrays["id"]] == paths
        h = arrays["h"]
    np.testing.assert_allclose(encoder.embed(photos), h, rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.embed(str(photos)), h, rtol=0, atol=1e-6)


def test_rows_come_in_the_order_given_whatever_the_batches(encoder, paths):
    h = encoder.embed(paths)
    order = np.random.default_rng(0).permutation(len(paths)).tolist() * 2
    given = [str(paths[i]) if i % 2 else Image.open(paths[i]) for i in order]
    for batch_size in (5, 64):
        found = encoder.embed(given, batch_size=batch_size)
        np.testing.assert_allclose(found, h[order], rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.embed(paths[3]), h[3:4], rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.embed(Image.open(paths[3])), h[3:4], rtol=0, atol=1e-6)
    assert encoder.embed([]).shape == (0, encoder.width)


def test_arrays_are_converted_between_grey_and_colour(runs, encoder):
    rng = np.random.default_rng(0)
    colour = np.stack([random_pixels(rng, 17, 20, 3) for _ in range(9)])
    grey = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colour])
    of_grey = gsg_jax.load(runs["grey"])
    np.testing.assert_array_equal(of_grey.embed(colour), of_grey.embed(grey[..., None]))
    h = encoder.embed(grey[..., None])
    np.testing.assert_array_equal(h, encoder.embed(np.repeat(grey[..., None], 3, axis=-1)))
    np.testing.assert_array_equal(h, encoder.embed(list(grey)))
    mixed = [colour[0], grey[1, :11], colour[2, 3:]]
    for image, row in zip(mixed, encoder.embed(mixed), strict=True):
        np.testing.assert_allclose(encoder.embed([image])[0], row, rtol=0, atol=1e-6)


def test_an_encoder_tells_what_it_is(encoder, runs):
    assert (encoder.width, encoder.image_size, encoder.channels, encoder.step) == (8, SIZE, 3, 0)
    assert encoder.config.method.name == "simsiam_gsg"
    assert repr(encoder) == (
        f"<encoder of {runs['colour']}: resnet10, step 0, images 12 x 12 x 3 to 8 numbers>"
    )


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("{tmp}/lost.jpg", "image 0 is {tmp}/lost.jpg: there is no such file"),
        (["{good}", "{tmp}/broken.jpg"], "cannot decode {tmp}/broken.jpg"),
        (["{good}", "{tmp}"], "image 1 is {tmp}: there is no such file"),
        ("{tmp}/empty", "{tmp}/empty holds no image (.jpg .jpeg"),
        ("{tmp}", "cannot decode {tmp}/broken.jpg"),
        (np.zeros((8, 8, 3), np.uint8), "one array of shape (8, 8, 3): give [N, H, W, C]"),
        (np.zeros((2, 8, 8, 3)), "image 0 is an array of float64 and shape (8, 8, 3): give uint8"),
        (np.zeros((2, 8, 8, 2), np.uint8), "an array of uint8 and shape (8, 8, 2)"),
        (np.zeros((2, 0, 8, 3), np.uint8), "an array of uint8 and shape (0, 8, 3)"),
        ([Image.new("F", (4, 4))], "image 0 holds floats"),
        ([Image.new("I", (4, 4), 2**20)], "image 0 (mode I) cannot be used: its pixels have more"),
        ([None], "image 0 is an array of object and shape ()"),
        (7, "the images are of type int: give a folder, an array, or a list"),
    ],
)
def test_what_cannot_be_embedded_is_named_in_one_line(encoder, paths, tmp_path, images, said):
    (tmp_path / "broken.jpg").write_bytes(paths[0].read_bytes()[:200])
    (tmp_path / "empty").mkdir()

    def filled(value):
        return value.format(tmp=tmp_path, good=paths[0]) if isinstance(value, str) else value

    images = [filled(part) for part in images] if isinstance(images, list) else filled(images)
    with pytest.raises(gsg_jax.UserError) as error:
        encoder.embed(images)
    assert filled(said) in str(error.value) and "\n" not in str(error.value)
