"""Codecs: images to a state and back. The autoencoder is a tiny random one, saved by the test."""

import pytest
import torch

from ditkit.codecs import CODECS, IdentityConfig, VaeConfig
from ditkit.codecs.identity import to_signed, to_uint8
from ditkit.errors import InputError

BYTES = torch.arange(256, dtype=torch.uint8)


def images(channels, height=16, width=24, n=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


# Identity


@pytest.mark.parametrize("channels", [1, 3])
def test_identity_is_exact(channels):
    codec = IdentityConfig().build(channels)
    every = BYTES.reshape(1, 1, 16, 16).expand(1, channels, -1, -1)
    state = codec.encode(every)
    assert state.dtype == torch.float32
    assert state.min() == -1
    assert state.max() == 1
    assert codec.decode(state).equal(every)
    assert codec.decode(state.double()).equal(every)


def test_nearest_byte_and_its_tolerance():
    """A byte survives any error below half a step of 2/255; what lies outside [-1, 1] is clamped."""
    state = to_signed(BYTES)
    for error in (-0.49, 0.49):
        assert to_uint8(state + error * 2 / 255).equal(BYTES)
    assert to_uint8(torch.tensor([-7.0, -1.0, 1.0, 7.0])).tolist() == [0, 0, 255, 255]


def test_layout_of_identity():
    codec = IdentityConfig().build(3)
    layout = codec.layout(20, 30)
    assert layout.shape == (3, 20, 30)
    assert layout.parts == 1
    assert codec.channels == 3


def test_registry_builds():
    for kind, config in CODECS.items():
        assert config.kind == kind
        codec = config.build(3)
        assert codec.layout(64, 32).shape[0] == codec.channels


# An autoencoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(16,) * 4,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=16,
        )
    path = tmp_path_factory.mktemp("vae")
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def vae(folder):
    return VaeConfig(id=folder).build(3)


def test_shapes_and_scale(vae, folder):
    pixels = images(3)
    state = vae.encode(pixels)
    assert state.shape == (3, *vae.layout(16, 24).shape) == (3, 4, 2, 3)
    assert state.dtype == torch.float32
    decoded = vae.decode(state)
    assert decoded.shape == pixels.shape
    assert decoded.dtype == torch.uint8
    with torch.no_grad():
        latent = vae.autoencoder.encode(to_signed(pixels)).latent_dist.mean
        expected = to_uint8(vae.autoencoder.decode(latent).sample)
    torch.testing.assert_close(state, 0.18215 * latent)
    assert (decoded.int() - expected.int()).abs().max() <= 1
    assert decoded.float().std() > 0
    other = VaeConfig(id=folder, scale=0.5).build(3)
    torch.testing.assert_close(other.encode(pixels), 0.5 * latent)
    assert (other.decode(other.encode(pixels)).int() - expected.int()).abs().max() <= 1


def test_a_sample_of_the_posterior(vae):
    """mean + std · noise, times the scale, with the noise that is given."""
    pixels = images(3)
    noise = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        posterior = vae.autoencoder.encode(to_signed(pixels)).latent_dist
    expected = 0.18215 * (posterior.mean + (posterior.logvar / 2).exp() * noise)
    torch.testing.assert_close(vae.encode(pixels, noise), expected)
    torch.testing.assert_close(vae.encode(pixels, torch.zeros_like(noise)), vae.encode(pixels))
    assert (vae.encode(pixels, noise) - vae.encode(pixels)).abs().max() > 0.01


def test_images_are_encoded_one_by_one(vae):
    pixels = images(3)
    alone = torch.cat([vae.encode(image[None]) for image in pixels])
    torch.testing.assert_close(vae.encode(pixels), alone, rtol=0, atol=1e-5)


def test_grey_images(vae, folder):
    """Encoded as RGB with three equal channels; decoded to the mean of the three."""
    grey = VaeConfig(id=folder).build(1)
    pixels = images(1)
    state = grey.encode(pixels)
    torch.testing.assert_close(state, vae.encode(pixels.expand(-1, 3, -1, -1)))
    decoded = grey.decode(state)
    assert decoded.shape == pixels.shape
    with torch.no_grad():
        colours = vae.autoencoder.decode(state / 0.18215).sample
    assert (decoded.int() - to_uint8(colours.mean(1, keepdim=True)).int()).abs().max() <= 1
    assert colours.std(1).max() > 0.01


def test_the_autoencoder_is_frozen(vae):
    assert not any(p.requires_grad for p in vae.autoencoder.parameters())
    assert not vae.autoencoder.training
    assert not vae.encode(images(3)).requires_grad


@pytest.mark.parametrize("fields", [{"channels": 16}, {"downsampling": 16}])
def test_another_latent(folder, fields):
    remedy = "has 4 latent channels at 1/8; set --codec.channels 4 --codec.downsampling 8"
    with pytest.raises(InputError, match=remedy):
        VaeConfig(id=folder, **fields).build(3).encode(images(3))


def test_missing_folder(tmp_path):
    pytest.importorskip("diffusers")
    gone = tmp_path / "gone"
    codec = VaeConfig(id=str(gone)).build(3)  # not loaded before it is needed
    assert codec.layout(16, 16).shape == (4, 2, 2)
    with pytest.raises(InputError) as caught:
        codec.encode(images(3))
    message = str(caught.value)
    assert message.startswith(f"--codec.id {gone}: cannot load this autoencoder (")
    assert "local folder" in message
    assert "\n" not in message


def test_folder_of_something_else(tmp_path):
    pytest.importorskip("diffusers")
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(InputError, match="cannot load") as caught:
        VaeConfig(id=str(tmp_path)).build(3).decode(torch.zeros(1, 4, 2, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(20, 16), (16, 20)])
def test_sizes_that_do_not_divide(size):
    height, width = size
    with pytest.raises(InputError, match=f"{height}x{width} are not divisible .* 8; .* multiple of 8"):
        VaeConfig().build(3).layout(height, width)
