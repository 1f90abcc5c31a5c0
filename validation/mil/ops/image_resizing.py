"""Resizing, cropping and resampling of the last axes (iOS15, iOS16, iOS17 image_resizing)."""

from __future__ import annotations

import math

import torch

from validation.mil.ops.sampling import axis_grid, grid, linear_along, reflect, sample
from validation.mil.registry import Ints, Kind, Tensor, op

_DOUBLE = torch.float64


def _nearest_along(x: Tensor, axis: int, points: Tensor) -> Tensor:
    return x.index_select(axis, points.long().clamp(0, x.shape[axis] - 1))


@op("upsample_nearest_neighbor", kind=Kind.MOVE, fresh=True)
def upsample_nearest_neighbor(x: Tensor, scale_factor_height: float = 1.0, scale_factor_width: float = 1.0) -> Tensor:
    """iOS15 image_resizing.upsample_nearest_neighbor: the scale is recomputed from the whole output size"""
    height = math.floor(x.shape[-2] * scale_factor_height)
    width = math.floor(x.shape[-1] * scale_factor_width)
    resized: Tensor = resize_nearest_neighbor(x, height, width)
    return resized


@op("resize_nearest_neighbor", kind=Kind.MOVE, fresh=True)
def resize_nearest_neighbor(x: Tensor, target_size_height: int, target_size_width: int) -> Tensor:
    """iOS15 image_resizing.resize_nearest_neighbor: floor(i * old / new), in whole numbers"""
    for axis, count in ((-2, target_size_height), (-1, target_size_width)):
        x = x.index_select(axis, torch.arange(count) * x.shape[axis] // count)
    return x


@op("upsample_bilinear", fresh=True)
def upsample_bilinear(
    x: Tensor,
    scale_factor_height: float = 1.0,
    scale_factor_width: float = 1.0,
    align_corners: bool = True,
    half_pixel_centers: bool | None = None,
) -> Tensor:
    """iOS15, iOS16 image_resizing.upsample_bilinear: the scale is recomputed from the whole output size"""
    centred = not align_corners if half_pixel_centers is None else half_pixel_centers
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if centred else "DEFAULT"
    height = math.floor(x.shape[-2] * scale_factor_height)
    width = math.floor(x.shape[-1] * scale_factor_width)
    resized: Tensor = resize_bilinear(x, height, width, mode)
    return resized


@op("resize_bilinear", fresh=True)
def resize_bilinear(
    x: Tensor, target_size_height: int = 1, target_size_width: int = 1, sampling_mode: str = "DEFAULT"
) -> Tensor:
    """iOS15 image_resizing.resize_bilinear"""
    rows = axis_grid(sampling_mode, x.shape[-2], target_size_height)
    columns = axis_grid(sampling_mode, x.shape[-1], target_size_width)
    return linear_along(linear_along(x, -2, rows), -1, columns)


@op("resize")
def resize(
    x: Tensor, shape: Ints, resized_dims: int, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> Tensor:
    """iOS17 image_resizing.resize: the last `resized_dims` axes to the last entries of shape (0 keeps the length)"""
    for axis in range(-resized_dims, 0):
        count = shape[axis] or x.shape[axis]
        points = axis_grid(sampling_mode, x.shape[axis], count)
        if interpolation_mode == "LINEAR":
            x = linear_along(x, axis, points)
        elif interpolation_mode != "NEAREST_NEIGHBOR":
            raise ValueError(f"unknown interpolation mode {interpolation_mode!r}")
        else:
            x = _nearest_along(x, axis, torch.floor(points + 0.5))
    return x


@op("crop", kind=Kind.MOVE)
def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """iOS15 image_resizing.crop: (before, after) taken from the last two axes"""
    for axis, (before, after) in ((-2, crop_height), (-1, crop_width)):
        length = x.shape[axis] - before - after
        if before < 0 or after < 0 or length < 0:
            raise IndexError(f"crop of {before} and {after} from an axis of {x.shape[axis]}")
        x = x.narrow(axis, before, length)
    return x


def _corners(boxes: Tensor, mode: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """boxes (N, 4) as (top, left, bottom, right), each (N,)."""
    first, second, third, fourth = boxes.unbind(-1)
    if mode in ("CORNERS_WIDTH_FIRST", "CENTER_SIZE_WIDTH_FIRST"):
        first, second, third, fourth = second, first, fourth, third
    if mode.startswith("CORNERS"):
        return first, second, third, fourth
    if not mode.startswith("CENTER_SIZE"):
        raise ValueError(f"unknown box_coordinate_mode {mode!r}")
    return first - third / 2, second - fourth / 2, first + third / 2, second + fourth / 2


@op("crop_resize", fresh=True)
def crop_resize(
    x: Tensor,
    roi: Tensor | None = None,
    boxes: Tensor | None = None,
    box_indices: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """iOS15, iOS16 (roi, five axes out) and iOS17 (boxes, four axes out) image_resizing.crop_resize"""
    sizes = (target_height, target_width)
    options = (normalized_coordinates, spatial_scale, box_coordinate_mode, sampling_mode, pad_value)
    if boxes is not None:
        images = torch.arange(boxes.shape[0]) if box_indices is None else box_indices.long()
        return _crops(x.index_select(0, images), boxes, sizes, *options)
    if roi is None:
        raise ValueError("crop_resize has neither roi nor boxes")
    flat = roi.flatten(1)
    if flat.shape[1] == 5:
        return _crops(x.index_select(0, flat[:, 0].long()), flat[:, 1:], sizes, *options).unsqueeze(1)
    count, batch = flat.shape[0], x.shape[0]
    every = _crops(x.repeat(count, 1, 1, 1), flat.repeat_interleave(batch, 0), sizes, *options)
    return every.reshape(count, batch, *every.shape[1:])


def _crops(
    x: Tensor,
    boxes: Tensor,
    sizes: tuple[int, int],
    normalized: bool,
    scale: float,
    box_mode: str,
    sampling_mode: str,
    pad_value: float,
) -> Tensor:
    """One crop per image: x (N, C, H, W), boxes (N, 4) -> (N, C, *sizes)."""
    top, left, bottom, right = _corners(boxes.to(_DOUBLE) * scale, box_mode)
    height, width = x.shape[-2:]
    if normalized:
        top, bottom, left, right = top * (height - 1), bottom * (height - 1), left * (width - 1), right * (width - 1)
    rows = grid(sampling_mode, top, bottom, sizes[0])
    columns = grid(sampling_mode, left, right, sizes[1])
    rows, columns = torch.broadcast_tensors(rows.unsqueeze(-1), columns.unsqueeze(-2))
    outside = (rows < 0) | (rows > height - 1) | (columns < 0) | (columns > width - 1)
    values = sample(x, rows, columns, "bilinear", None)
    return torch.where(outside.unsqueeze(1), torch.tensor(pad_value, dtype=x.dtype), values)


def _in_pixels(points: Tensor, length: int, mode: str, align_corners: bool) -> Tensor:
    """Coordinates of one axis in pixels, whatever their mode."""
    if mode == "unnormalized":
        return points
    if mode == "normalized_minus_one_to_one":
        points = (points + 1) / 2
    elif mode != "normalized_zero_to_one":
        raise ValueError(f"unknown coordinates_mode {mode!r}")
    return points * (length - 1) if align_corners else points * length - 0.5


def _padded_points(points: Tensor, length: int, padding_mode: str) -> Tensor:
    if padding_mode == "border":
        return points.clamp(0, length - 1)
    if padding_mode == "reflection":
        return reflect(points, length, 0, 2 * (length - 1))
    if padding_mode == "symmetric":
        return reflect(points, length, -1, 2 * length - 1)
    if padding_mode != "constant":
        raise ValueError(f"unknown padding_mode {padding_mode!r}")
    return points


@op("resample", fresh=True)
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """iOS15, iOS16, iOS17 image_resizing.resample: x (B, C, H, W) at coordinates (B, H2, W2, 2) as (x, y)"""
    points = coordinates.to(_DOUBLE)
    height, width = x.shape[-2:]
    columns = _padded_points(_in_pixels(points[..., 0], width, coordinates_mode, align_corners), width, padding_mode)
    rows = _padded_points(_in_pixels(points[..., 1], height, coordinates_mode, align_corners), height, padding_mode)
    return sample(x, rows, columns, sampling_mode, padding_value if padding_mode == "constant" else None)


@op("affine", fresh=True)
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """iOS15 image_resizing.affine: a resample at matrix @ (x, y, 1), output places normalised like the input's"""
    axes = [_normalized(count, coordinates_mode, align_corners) for count in (output_width, output_height)]
    across, down = torch.broadcast_tensors(axes[0].unsqueeze(0), axes[1].unsqueeze(1))
    places = torch.stack((across, down, torch.ones_like(across)), dim=-1)
    matrix = transform_matrix.to(_DOUBLE).reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    points = torch.einsum("hwk,bck->bhwc", places, matrix)
    options = (sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)
    sampled: Tensor = resample(x, points, *options)
    return sampled


def _normalized(count: int, mode: str, align_corners: bool) -> Tensor:
    """Where the `count` pixels of an output axis lie, in the coordinates of `mode`."""
    i = torch.arange(count, dtype=_DOUBLE)
    if mode == "unnormalized":
        return i
    unit = i / max(count - 1, 1) if align_corners else (i + 0.5) / count
    return unit if mode == "normalized_zero_to_one" else 2 * unit - 1
