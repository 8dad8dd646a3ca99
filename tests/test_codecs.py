"""Codecs: images to a state and back. The autoencoder is a tiny random one, saved by the test."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditkit.codecs import CODECS, IdentityConfig, VaeConfig
from ditkit.codecs.identity import to_signed, to_uint8
from ditkit.errors import InputError, NotFinite

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


def saved(path, blocks=4, seed=0, **config):
    """A tiny random autoencoder in diffusers' format; the folder."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=(16,) * blocks,
            norm_num_groups=8,
            **({"latent_channels": 4, "sample_size": 16} | config),
        )
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("vae"))


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
    """mean + std · noise, times the scale, with the noise that is passed."""
    pixels = images(3)
    noise = torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        posterior = vae.autoencoder.encode(to_signed(pixels)).latent_dist
    expected = 0.18215 * (posterior.mean + (posterior.logvar / 2).exp() * noise)
    torch.testing.assert_close(vae.encode(pixels, noise), expected)
    torch.testing.assert_close(vae.encode(pixels, torch.zeros_like(noise)), vae.encode(pixels))
    assert (vae.encode(pixels, noise) - vae.encode(pixels)).abs().max() > 0.01


def test_moments_and_a_sample_of_them_are_the_two_halves_of_encoding(vae):
    """Mean and logvar as the network gives them; diffusers' limits of logvar are kept in the sample."""
    pixels, noise = images(3), torch.randn(3, 4, 2, 3, generator=torch.Generator().manual_seed(1))
    moments = vae.moments(pixels)
    with torch.no_grad():
        posterior = vae.autoencoder.encode(to_signed(pixels)).latent_dist
    assert moments.shape == (3, 8, 2, 3)
    assert moments.dtype == torch.float32
    torch.testing.assert_close(moments, posterior.parameters)
    assert torch.equal(vae.sample(moments, noise), vae.encode(pixels, noise))
    assert torch.equal(vae.sample(moments), vae.encode(pixels))
    extreme = torch.tensor([-1000.0, 1000.0]).reshape(2, 1, 1, 1)
    wild = torch.cat([torch.zeros(2, 4, 1, 1), extreme.expand(-1, 4, 1, 1)], dim=1)
    stds = vae.sample(wild, torch.ones(2, 4, 1, 1))[:, 0, 0, 0] / 0.18215
    torch.testing.assert_close(stds.log(), torch.tensor([-15.0, 10.0]))


def test_scale_and_shift_are_the_folders_own(tmp_path, folder):
    """Stable Diffusion's from its name; elsewhere scaling_factor and shift_factor, or one pair per channel; what
    the recipe says goes before both."""
    sd = VaeConfig().resolved()
    assert (sd.scale, sd.shift, sd.channels, sd.downsampling) == (0.18215, 0, 4, 8)
    assert VaeConfig(id="someone/else").resolved().scale is None  # known when it is fetched
    own = saved(tmp_path / "a", blocks=2, latent_channels=3, scaling_factor=0.5, shift_factor=0.25)
    found = VaeConfig(id=own).resolved()
    assert (found.scale, found.shift, found.channels, found.downsampling) == (0.5, 0.25, 3, 2)
    pixels = images(3)
    codec = VaeConfig(id=own).build(3)
    mean = codec.moments(pixels)[:, :3]
    torch.testing.assert_close(codec.encode(pixels), (mean - 0.25) * 0.5)
    codec.config = codec.config.model_copy(
        update={"scale": None, "shift": None}
    )  # as of a Hub id, once fetched
    torch.testing.assert_close(codec.encode(pixels), (mean - 0.25) * 0.5)
    per_channel = saved(
        tmp_path / "b", blocks=2, latent_channels=3, latents_mean=[1.0, 2.0, 3.0], latents_std=[0.5, 1.0, 2.0],
        scaling_factor=0.5,
    )  # fmt: skip
    each = VaeConfig(id=per_channel).build(3)
    mean = each.moments(pixels)[:, :3]
    expected = torch.stack([(mean[:, c] - (c + 1)) * 0.5 / 2.0 ** (c - 1) for c in range(3)], dim=1)
    torch.testing.assert_close(each.encode(pixels), expected)
    chosen = VaeConfig(id=own, scale=(1, 2, 4), shift=(0, 0, 1)).build(3)
    mean = chosen.moments(pixels)[:, :3]
    assert torch.equal(chosen.encode(pixels)[:, 2], (mean[:, 2] - 1) * 4)
    undone = (chosen.decode(chosen.encode(pixels)).int() - codec.decode(codec.encode(pixels)).int()).abs()
    assert undone.max() <= 1
    with pytest.raises(InputError, match=r"`codec\.scale` has 2 numbers.* 3 channels; give one, or 3"):
        VaeConfig(id=own, scale=(1, 2)).build(3)
    assert VaeConfig.model_validate_json(VaeConfig(scale=(1, 2)).model_dump_json()).scale == (1, 2)


def test_the_encoders_hash_names_what_encodes(tmp_path, folder):
    """Another decoder: the same hash; another encoder: another one."""
    other = saved(tmp_path / "other", seed=1)
    first, second = (VaeConfig(id=path).build(3) for path in (folder, other))
    assert first.encoder_hash != second.encoder_hash
    second.autoencoder.encoder.load_state_dict(first.autoencoder.encoder.state_dict())
    second.autoencoder.quant_conv.load_state_dict(first.autoencoder.quant_conv.state_dict())
    del second.encoder_hash
    assert first.encoder_hash == second.encoder_hash


def test_batches_tiles_and_bf16(tmp_path, folder):
    """Any batch gives the same; tiles of 16 pixels and bf16 give nearly the same."""
    with pytest.raises(InputError, match=r"`codec\.tiling`: the tiles .* are 2 latent pixels wide"):
        VaeConfig(id=folder, tiling=True).build(3).encode(images(3))
    folder = saved(tmp_path, blocks=2)
    pixels = images(3, 32, 32, n=5)
    whole = VaeConfig(id=folder).build(3)
    parts = VaeConfig(id=folder, batch=2).build(3)
    calls = []
    encode = parts.autoencoder.encode
    parts.autoencoder.encode = lambda part: calls.append(len(part)) or encode(part)
    moments = whole.moments(pixels)
    torch.testing.assert_close(parts.moments(pixels), moments, rtol=0, atol=1e-5)
    assert calls == [2, 2, 1]
    assert (
        parts.decode(parts.sample(moments)).int() - whole.decode(whole.sample(moments)).int()
    ).abs().max() <= 1
    for changed in (VaeConfig(id=folder, tiling=True), VaeConfig(id=folder, precision="bf16")):
        other = changed.build(3).moments(pixels)
        assert other.shape == moments.shape
        assert other.dtype == torch.float32
        assert 0 < (other - moments).abs().mean() < 0.5 * moments.std(), changed


def test_autoencoders_of_grey_images(tmp_path):
    """One channel in and out: grey images as they are, colour images refused."""
    path = saved(tmp_path, blocks=2, in_channels=1, out_channels=1)
    codec, pixels = VaeConfig(id=path).build(1), images(1)
    with torch.no_grad():
        expected = codec.autoencoder.encode(to_signed(pixels)).latent_dist.parameters
    torch.testing.assert_close(codec.moments(pixels), expected)
    assert codec.decode(codec.encode(pixels)).shape == pixels.shape
    with pytest.raises(InputError, match=r"for images of 1 channel, these have 3; set `data\.channels` 1"):
        VaeConfig(id=path).build(3).encode(images(3))


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
    remedy = "has 4 latent channels at 1/8; set `codec.channels` 4 `codec.downsampling` 8"
    with pytest.raises(InputError, match=remedy):
        VaeConfig(id=folder, **fields).build(3).encode(images(3))


def test_weights_that_are_not_finite(tmp_path):
    """Which would make every image black."""
    folder = saved(tmp_path / "vae", blocks=1)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(NotFinite, match=f"{folder}: its weights are not all finite"):
        VaeConfig(id=folder).build(3).encode(images(3))


def test_missing_folder(tmp_path):
    pytest.importorskip("diffusers")
    gone = tmp_path / "gone"
    codec = VaeConfig(id=str(gone)).build(3)  # not loaded before it is needed
    assert codec.layout(16, 16).shape == (4, 2, 2)
    with pytest.raises(InputError) as caught:
        codec.encode(images(3))
    message = str(caught.value)
    assert message.startswith(f"`codec.id` {gone}: cannot load this autoencoder (")
    assert "local folder" in message
    assert "\n" not in message


def test_revision_and_an_unreachable_hub(monkeypatch):
    """The revision is asked for; what the Hub's client raises becomes one line with the way out."""
    diffusers = pytest.importorskip("diffusers")
    fetched = []

    def unreachable(name, **options):
        fetched.append((name, options["revision"]))
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files")

    monkeypatch.setattr(diffusers.AutoencoderKL, "from_pretrained", unreachable)
    codec = VaeConfig(id="someone/vae", revision="v2").build(3)
    with pytest.raises(
        InputError, match=r"someone/vae: cannot load .*couldn't connect.*give a local folder"
    ) as caught:
        codec.encode(images(3))
    assert "\n" not in str(caught.value)
    assert fetched == [("someone/vae", "v2")]


def test_no_connection_and_nothing_kept_is_not_reported_as_a_missing_file(monkeypatch):
    """diffusers says that the id has no config.json when it could not ask."""
    pytest.importorskip("diffusers")
    from huggingface_hub.errors import LocalEntryNotFoundError

    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("Please check your connection")

    monkeypatch.setattr("diffusers.configuration_utils.hf_hub_download", unreachable)
    with pytest.raises(InputError) as caught:
        VaeConfig(id="someone/vae").build(3).encode(images(3))
    assert "(neither reached on the Hub nor in its cache); give a local folder" in str(caught.value)


def test_a_local_folder_is_known_by_its_whole_path(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").symlink_to(folder)
    assert VaeConfig(id="mine").resolved().id == str(tmp_path / "mine")
    assert VaeConfig(id="someone/vae").resolved().id == "someone/vae"


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


def test_an_autoencoder_of_images_takes_each_frame_of_a_clip_alone(folder):
    codec = VaeConfig(id=folder, batch=3).build(3)
    frames = images(3, n=4)
    clips = torch.stack([frames, frames.flip(0)]).transpose(1, 2)  # (2, 3, 4, H, W)
    alone = codec.encode(frames)
    state = codec.encode(clips)
    layout = codec.layout(*clips.shape[2:])
    assert state.shape == (2, *layout.shape)
    assert layout.parts == 4
    torch.testing.assert_close(state[0], alone.transpose(0, 1))
    torch.testing.assert_close(codec.decode(state)[1], codec.decode(alone.flip(0)).transpose(0, 1))
    with_noise = codec.encode(clips, torch.ones_like(state))
    torch.testing.assert_close(with_noise[0], codec.encode(frames, torch.ones_like(alone)).transpose(0, 1))


def test_an_autoencoder_of_clips(tmp_path):
    """Its first latent frame stands for the first frame alone, later ones for two each."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 2,
        up_block_types=("CogVideoXUpBlock3D",) * 2,
        block_out_channels=(8, 8),
        latent_channels=2,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=2,
        scaling_factor=0.5,
    )
    model.save_pretrained(tmp_path)
    codec = VaeConfig(id=str(tmp_path)).build(3)
    clips = images(3, n=5).transpose(0, 1)[None]  # (1, 3, 5, H, W)
    layout = codec.layout(*clips.shape[2:])
    state = codec.encode(clips)
    assert state.shape == (1, *layout.shape)
    assert layout.parts == 3
    assert codec.decode(state).shape == clips.shape
    image = codec.encode(clips[:, :, 0])
    assert image.shape == (1, 2, *layout.shape[2:])
    assert image.equal(codec.encode(clips[:, :, :1])[:, :, 0])
    with pytest.raises(InputError, match=r"clips of 4 frames: .* set `data.frames` 3"):
        codec.layout(4, 16, 16)
