"""A solver that chooses its own steps, by torchdiffeq."""

import torch
from torch import Tensor

from ditkit.transports import Denoiser


def dopri5(
    denoise: Denoiser, x: Tensor, grid: Tensor, cond: dict, *, noise=None, tolerance: float = 1e-4
) -> Tensor:
    """ODE to a tolerance, relative and absolute (Dormand-Prince 5(4)): as many evaluations as that needs.

    Image by image: an error norm over a batch would let images depend on each other. Of the grid only the
    two ends count. The solver looks beyond them before it comes back; the network is not asked there. It works on the
    CPU, where its float64 times are, whatever the device that the network is asked on.
    """
    from torchdiffeq import odeint  # imports scipy's integrators: most of a second

    start, end = grid[0], grid[-1]

    def alone(x: Tensor, cond: dict) -> Tensor:
        def slope(u: Tensor, now: Tensor) -> Tensor:  # u from 0 to 1 is time from start to end, for all parts
            t = torch.lerp(start, end, u.to(start).clamp(0, 1)).expand(1, *start.shape)
            velocity = denoise(now.to(x), t, cond).velocity.to(now)
            return denoise.expand((end - start).expand(1, *start.shape), now) * velocity

        u = torch.linspace(0, 1, 2, dtype=torch.float64, device="cpu")
        return odeint(slope, x.cpu(), u, rtol=tolerance, atol=tolerance, method="dopri5")[-1].to(x)

    rows = range(len(x))
    return torch.cat([alone(x[k : k + 1], {key: v[k : k + 1] for key, v in cond.items()}) for k in rows])
