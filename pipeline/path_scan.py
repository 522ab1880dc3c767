"""Scans over a map of features: read along several paths, scanned, put back and summed. SaMam's and Mamba-ST's core.

Responsible for: the projections that make Delta, B and C, one set a path, and their initialisation. Which pixels a path
visits is in `scan_orders.py`, the recurrence in `selective_scan.py`, the letters in the glossary of `mamba.py`.

It is the scan of `mamba.MambaMixer` with three doors that a style may come in by: what is read out (`reader`), and A and
D (`decay`).
"""

import torch
from torch import Tensor, nn

from .mamba import init_scan, linear
from .scan_orders import scan_orders
from .selective_scan import selective_scan


class PathScan(nn.Module):
    """Maps features (B, D, H, W) to the same shape, K paths at once.

    own_decay: whether A and D are parameters of its own; otherwise every call brings them.
    """

    def __init__(
        self, d_inner: int, dt_rank: int, d_state: int, scan_order: str, own_decay: bool = True
    ) -> None:
        super().__init__()
        self.dt_rank, self.d_state, self.scan_order = dt_rank, d_state, scan_order
        self.paths = paths = len(scan_orders(scan_order, 1, 1)[0])
        self.x_proj = nn.Parameter(torch.empty(paths, dt_rank + 2 * d_state, d_inner))
        self.dt_proj = nn.Parameter(torch.empty(paths, d_inner, dt_rank))
        self.dt_bias = nn.Parameter(torch.empty(paths, d_inner))
        self.A_log = nn.Parameter(torch.empty(paths, d_inner, d_state)) if own_decay else None
        self.D = nn.Parameter(torch.empty(paths, d_inner)) if own_decay else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Mamba's initialisation. A re-initialisation of a whole model must leave these parameters out: Xavier's makes
        every state forget within two tokens."""
        init_scan(self.x_proj, self.dt_proj, self.dt_bias, self.A_log, self.D)

    def forward(
        self, u: Tensor, reader: Tensor | None = None, decay: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """u: (B, D, H, W), what is written into the state. reader: the same shape, what C is made of; `u` if left out.
        decay: A (B, K*D, N) and D (B, K*D) of a layer without its own."""
        height, width = u.shape[-2:]
        orders, inverses = scan_orders(self.scan_order, height, width, u.device)  # (K, L) each
        n, written = self.d_state, self.dt_rank + self.d_state

        # A projection does the same to a token wherever it stands, so that few numbers need to be moved, not many.
        tokens = u.flatten(2).mT  # (B, L, D)
        if reader is None:
            dt, B, C = self._project(tokens, orders, 0, None).split((self.dt_rank, n, n), -1)
        else:
            dt, B = self._project(tokens, orders, 0, written).split((self.dt_rank, n), -1)
            C = self._project(reader.flatten(2).mT, orders, written, None)  # (B, L, K, N)
        if decay is None:
            A, D = -torch.exp(self.A_log).flatten(0, 1), self.D.flatten()
        else:
            A, D = decay
        delta = torch.einsum("kdr,blkr->blkd", self.dt_proj, dt)  # (B, L, K, D)
        path = tokens.index_select(1, orders.T.flatten())  # (B, L*K, D)
        y = selective_scan(
            path.unflatten(1, (-1, self.paths)).flatten(2).mT,
            delta.flatten(2).mT,
            A,
            B.permute(0, 2, 3, 1),
            C.permute(0, 2, 3, 1),
            D,
            delta_bias=self.dt_bias.flatten(),
            delta_softplus=True,
        )  # (B, K*D, L)
        y = y.mT.reshape(path.shape)  # (B, L*K, D)
        y = y.index_select(1, self._places(inverses)).unflatten(1, (-1, self.paths)).sum(2)  # (B, L, D)
        return y.mT.unflatten(2, (height, width))

    def _project(self, tokens: Tensor, orders: Tensor, first: int, last: int | None) -> Tensor:
        """Rows `first` to `last` of every path's projection, along that path: (B, L, D) to (B, L, K, rows)."""
        made = linear(tokens, self.x_proj[:, first:last].flatten(0, 1)).unflatten(2, (self.paths, -1))
        return made.flatten(1, 2).index_select(1, self._places(orders)).view_as(made)

    def _places(self, orders: Tensor) -> Tensor:
        """Where the entries of each path stand among L*K of them, K side by side."""
        return (orders.T * self.paths + torch.arange(self.paths, device=orders.device)).flatten()
