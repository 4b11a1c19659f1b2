"""Rows of an all-to-all in 16 bits, with one scale per element type. It does not own what is sent to whom.

A row's values x travel as float16 of x 2^(15 - e), where e is the exponent of the largest finite |x| among the rows
of its element that this rank sends to others (max |x| in [2^(e-1), 2^e)): the largest values lie just below float16's
end, and scaling by a power of two adds no error. So for every finite value

    |received - x| <= max(2^-11 |x|, 2^-40 2^e)

(round to nearest with 11 bits, float16's smallest step being 2^-24). Infinities and NaN arrive as they were and do not
touch the other values; a row of zeros arrives as zeros; the rows a rank keeps are not rounded. Below 2^-140 values may
arrive as zero, and within 2^-12 of the dtype's largest number as infinity.

Bytes sent, for rows of w values and r of them for the other n - 1 ranks: 2 w (r + (n - 1) h), where the exponents of
all elements, 2 bytes each, take the place of h = ceil(num_elements / w) rows per receiver. The derivative is straight
through: cotangents travel back in the same way, with scales of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus.parallel.axis import Axis

TOP_EXPONENT = 15  # 2^15 is float16's largest power of two
LEAST_EXPONENT = -100  # keeps 2^(15 - e) finite in float32


@dataclass(frozen=True)
class Compression:
    """The element type of every row of one all-to-all. num_elements: size of the table of scales.

    sent [sum(input_rows)], received [sum(output_rows)]: int64, in [0, num_elements), on the rows' device.
    """

    num_elements: int
    sent: Tensor
    received: Tensor

    @classmethod
    def of_segments(
        cls,
        num_elements: int,
        sent: Sequence[tuple[int, int]],
        received: Sequence[tuple[int, int]],
        device: torch.device | str = "cpu",
    ) -> Compression:
        """From (element, number of rows) of each segment, in the order of the rows."""

        def spread(segments: Sequence[tuple[int, int]]) -> Tensor:
            elements, counts = torch.tensor(segments, dtype=torch.int64).reshape(-1, 2).unbind(1)
            return elements.repeat_interleave(counts).to(device)

        return cls(num_elements, spread(sent), spread(received))

    def adjoint(self) -> Compression:
        """Of the all-to-all in the other direction."""
        return Compression(self.num_elements, self.received, self.sent)

    def launch(
        self, operand: Tensor, axis: Axis, output_rows: Sequence[int], input_rows: Sequence[int], phase: str
    ) -> Callable[[], Tensor]:
        """Start an all-to-all of the operand's rows; the returned function waits and gives the rows received."""
        assert operand.dtype in (torch.float32, torch.float64), operand.dtype
        assert len(self.sent) == len(operand) == sum(input_rows), (len(self.sent), len(operand), sum(input_rows))
        assert len(self.received) == sum(output_rows), (len(self.received), sum(output_rows))
        shape, dtype = operand.shape[1:], operand.dtype
        width = shape.numel()
        header_rows = -(-self.num_elements // width)
        parts = list(operand.reshape(-1, width).split(list(input_rows)))
        elements = list(self.sent.split(list(input_rows)))
        kept = parts[axis.index].clone()
        parts[axis.index], elements[axis.index] = kept[:0], self.sent[:0]
        packed = _encode(parts, elements, axis.index, self.num_elements, header_rows)
        sent_rows, arriving_rows = (_with_headers(rows, axis.index, header_rows) for rows in (input_rows, output_rows))
        arrived = packed.new_empty((sum(arriving_rows), width))
        pending = axis.all_to_all(arrived, packed, arriving_rows, sent_rows, phase)

        def result(held: Tensor = packed) -> Tensor:
            pending.wait()
            messages = zip(arrived.split(arriving_rows), self.received.split(list(output_rows)), strict=True)
            pieces = [
                kept if source == axis.index else _decode(message, element, self.num_elements, header_rows, dtype)
                for source, (message, element) in enumerate(messages)
            ]
            return torch.cat(pieces).reshape(-1, *shape)

        return result


def _with_headers(rows: Sequence[int], own: int, header_rows: int) -> list[int]:
    """Rows that really travel: none to this rank itself, a header before each other part."""
    return [0 if index == own else header_rows + count for index, count in enumerate(rows)]


def _encode(
    parts: Sequence[Tensor], elements: Sequence[Tensor], own: int, num_elements: int, header_rows: int
) -> Tensor:
    """float16 [rows that travel, w]: for each other rank a header with all exponents, then its rows."""
    rows, element = torch.cat(list(parts)), torch.cat(list(elements))
    magnitude = torch.where(rows.isfinite(), rows.abs(), 0).amax(1)
    largest = rows.new_zeros(num_elements).scatter_reduce_(0, element, magnitude, "amax")
    exponents = torch.frexp(largest).exponent.clamp(min=LEAST_EXPONENT)
    scaled = (rows * torch.exp2((TOP_EXPONENT - exponents).to(rows.dtype))[element, None]).half()
    header = torch.zeros(header_rows * rows.shape[1], dtype=torch.int16, device=rows.device)
    header[:num_elements] = exponents
    header = header.view(torch.float16).reshape(header_rows, -1)
    messages = scaled.split([len(part) for part in parts])
    return torch.cat([piece for to, message in enumerate(messages) if to != own for piece in (header, message)])


def _decode(message: Tensor, element: Tensor, num_elements: int, header_rows: int, dtype: torch.dtype) -> Tensor:
    """Rows [r, w] of one sender from its message [header_rows + r, w]."""
    exponents = message[:header_rows].reshape(-1).view(torch.int16)[:num_elements]
    return message[header_rows:].to(dtype) * torch.exp2((exponents - TOP_EXPONENT).to(dtype))[element, None]
