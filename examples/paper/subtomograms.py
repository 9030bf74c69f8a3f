"""A simulator of subtomograms: densities of random but fixed macromolecules as an electron tomogram shows them.

The paper's data was simulated, too (after Gubins et al., SHREC'19 Track: Classification in Cryo-Electron Tomograms,
2019), and is not published with it. Here as there a macromolecule is turned and shifted at random, seen through the
microscope's contrast transfer function, without the views that a tilted stage cannot reach (the missing wedge), and
under noise. The macromolecules themselves are invented: chains of pseudo-residues, where SHREC'19 takes structures of
the Protein Data Bank.

Sources: Frank, Three-Dimensional Electron Microscopy of Macromolecular Assemblies (2006), for contrast transfer and for
the signal-to-noise ratio as a ratio of variances; Lucic, Rigort and Baumeister, Cryo-Electron Tomography: The Challenge
of Doing Structural Biology In Situ (2013), for the missing wedge; Shoemake, Uniform Random Rotations (1992).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RESIDUE_STEP = 3.8  # Angstrom between neighboring residues of a protein
RESIDUE_VOLUME = 135.0  # cubic Angstrom that a residue occupies
PACKING = 0.35  # of the sphere that a chain is kept in; domains of proteins are no full spheres
DOMAINS = 3  # compact parts of a macromolecule, which give it a shape


@dataclass(frozen=True)
class Microscope:
    """The instrument and the reconstruction; the values are usual ones for cryo-electron tomography.

    Attributes:
        voxel: Angstrom per voxel.
        size: Voxels per edge of a subtomogram.
        voltage: Of the acceleration, in kilovolts.
        defocus: Below focus, in Angstrom.
        spherical_aberration: In Angstrom.
        amplitude_contrast: The share of the contrast that absorption makes.
        resolution: At which a residue is blurred, in Angstrom.
        tilt: The largest angle of the stage to both sides, in degrees.

    """

    voxel: float = 10.0
    size: int = 32
    voltage: float = 300.0
    defocus: float = 30_000.0
    spherical_aberration: float = 2.7e7
    amplitude_contrast: float = 0.1
    resolution: float = 20.0
    tilt: float = 60.0

    @property
    def wavelength(self) -> float:
        """That of the electrons, in Angstrom."""
        volts = self.voltage * 1e3
        return 12.2643 / math.sqrt(volts + 0.97845e-6 * volts**2)

    def transfer(self) -> Tensor:
        """Return what the microscope multiplies the Fourier transform of a density with, (S, S, S // 2 + 1).

        The contrast transfer function times a Gaussian fall-off; zero in the missing wedge.
        """
        full = torch.fft.fftfreq(self.size, self.voxel)
        z, y, x = torch.meshgrid(full, full, torch.fft.rfftfreq(self.size, self.voxel), indexing="ij")
        squared = z**2 + y**2 + x**2
        phase = (
            math.pi
            * self.wavelength
            * squared
            * (self.defocus - 0.5 * self.spherical_aberration * self.wavelength**2 * squared)
        )
        phase_contrast = math.sqrt(1 - self.amplitude_contrast**2)
        contrast = phase_contrast * phase.sin() + self.amplitude_contrast * phase.cos()
        envelope = torch.exp(-squared * self.resolution**2 / 4)
        return contrast * envelope * self.wedge()

    def wedge(self) -> Tensor:
        """Return 1 where a tilt about the y axis, with the beam along z, reaches a frequency, and 0 elsewhere."""
        full = torch.fft.fftfreq(self.size, self.voxel)
        z, _, x = torch.meshgrid(full, full, torch.fft.rfftfreq(self.size, self.voxel), indexing="ij")
        reached = z.abs() <= math.tan(math.radians(self.tilt)) * x.abs() + 1e-9
        return reached.float()


def macromolecules(count: int, seed: int) -> list[Tensor]:
    """Return the residues of random macromolecules, (N, 3) in Angstrom around their center.

    Each is a chain of 1,500 to 6,000 residues (170 to 660 kDa) that walks at random inside a few overlapping
    ellipsoids, its domains.

    Args:
        count: Number of macromolecules.
        seed: The same seed gives the same ones, whatever the count.

    """
    return [_macromolecule(torch.Generator().manual_seed(seed * 1000 + number)) for number in range(count)]


def simulate(residues: Tensor, count: int, snr: float, microscope: Microscope, generator: torch.Generator) -> Tensor:
    """Return subtomograms of one macromolecule, each turned at random, shifted by up to two voxels, and noisy.

    Args:
        residues: Positions of shape (N, 3).
        count: Number of subtomograms.
        snr: Variance of the signal over that of the noise; infinite for none.
        microscope: The instrument.
        generator: Of rotations, shifts and noise.

    Returns:
        (count, S, S, S), each with mean 0 and variance 1.

    """
    size = microscope.size
    rotations = random_rotations(count, generator)
    shifts = (4 * torch.rand(count, 1, 3, generator=generator) - 2) * microscope.voxel
    positions = (residues @ rotations + shifts) / microscope.voxel + (size - 1) / 2
    spectrum = torch.fft.rfftn(splat(positions, size), dim=(1, 2, 3)) * microscope.transfer()
    signal = torch.fft.irfftn(spectrum, s=(size, size, size), dim=(1, 2, 3))
    if math.isfinite(snr):
        noise = torch.fft.rfftn(torch.randn(count, size, size, size, generator=generator), dim=(1, 2, 3))
        noise = torch.fft.irfftn(noise * microscope.wedge(), s=(size, size, size), dim=(1, 2, 3))
        signal = _standardize(signal) + _standardize(noise) / math.sqrt(snr)
    return _standardize(signal)


def random_rotations(count: int, generator: torch.Generator) -> Tensor:
    """Return rotations of uniform distribution, (count, 3, 3), from unit quaternions."""
    w, x, y, z = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1).unbind(1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=1).reshape(count, 3, 3)


def splat(positions: Tensor, size: int) -> Tensor:
    """Return grids (B, size, size, size) on whose eight nearest voxels each point of (B, N, 3) is spread linearly.

    The mass of all points is kept; what is outside of the grid is lost.
    """
    grids = positions.new_zeros(len(positions), size**3)
    corner = positions.floor()
    for bits in range(8):
        offset = torch.tensor([bits >> 2 & 1, bits >> 1 & 1, bits & 1])
        voxel = corner + offset
        weights = (1 - (positions - voxel).abs()).prod(dim=2)
        inside = ((voxel >= 0) & (voxel < size)).all(dim=2)
        flat = (voxel * torch.tensor([size * size, size, 1])).sum(dim=2).long()
        grids.scatter_add_(1, flat.clamp(0, size**3 - 1), weights * inside)
    return grids.reshape(-1, size, size, size)


def _macromolecule(generator: torch.Generator) -> Tensor:
    length = int(torch.randint(1500, 6001, (), generator=generator))
    radius = (3 * length / DOMAINS * RESIDUE_VOLUME / (4 * math.pi * PACKING)) ** (1 / 3)
    domains = []
    for _ in range(DOMAINS):
        center = radius * torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
        stretch = 0.5 + torch.rand(3, generator=generator)
        steps = torch.nn.functional.normalize(torch.randn(length // DOMAINS, 3, generator=generator), dim=1)
        domains.append(center + stretch * _fold((RESIDUE_STEP * steps).cumsum(dim=0), radius))
    residues = torch.cat(domains)
    return residues - residues.mean(dim=0)


def _fold(walk: Tensor, radius: float) -> Tensor:
    """Return the positions of a walk (N, 3) reflected at the surface of a ball, which they fill evenly."""
    distance = walk.norm(dim=1, keepdim=True).clamp(min=1e-6)
    reflected = radius - (distance % (2 * radius) - radius).abs()
    # a reflected distance is spread evenly over the radius, and its cube root over the volume
    return walk / distance * radius * (reflected / radius) ** (1 / 3)


def _standardize(volumes: Tensor) -> Tensor:
    mean = volumes.mean(dim=(1, 2, 3), keepdim=True)
    return (volumes - mean) / volumes.std(dim=(1, 2, 3), keepdim=True)
