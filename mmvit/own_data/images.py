"""Finds image files, and what keeps one from being read as it was labelled."""

from pathlib import Path

from PIL import Image, UnidentifiedImageError

from mmvit.deploy.runtime import IMAGES

EXIF_ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap width and height
MEND = 'copy it again, or delete it and its labels'


def list_images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES)


def decode(path: Path) -> Image.Image:
    """An image, read to its end. Raises ValueError with what is wrong with the file, and what to do."""
    try:
        with Image.open(path) as image:
            image.load()  # Image.verify does not find that the end is missing
            image.getexif()  # kept in the image: some formats read it from the file
            return image
    except UnidentifiedImageError:
        found = 'it is no image' if path.stat().st_size else 'it has 0 bytes'
        raise ValueError(f'{found}: {MEND}') from None
    except (PermissionError, Image.DecompressionBombError) as error:
        raise ValueError(f'it cannot be read ({error}): mend that, or leave it out') from None
    except Exception as error:  # broken files raise errors of many types
        raise ValueError(f'it is damaged, or its end is missing ({error}): {MEND}') from None


def stored_size(path: Path) -> tuple[int, int]:
    """Width and height, before any EXIF rotation; (1, 1) of a broken image, which the check names."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # broken files raise errors of many types
        return 1, 1


def rotation(image: Image.Image) -> int:
    """The orientation that EXIF gives, 1 if the image is upright."""
    found = image.getexif().get(EXIF_ORIENTATION, 1)
    return found if found in range(2, 9) else 1


def advise_rotation(image: Image.Image, labelled: tuple[int, int] | None) -> str:
    """How to mend an image with an EXIF rotation. mmcv turns it upright when it loads it.

    Args:
        image: With the mark.
        labelled: Width and height that the labels give, if they do.
    """
    turned = image.size[::-1] if rotation(image) in QUARTER_TURNS else image.size
    upright = 'save it upright, without the mark (mogrify -auto-orient)'
    unmarked = 'remove the mark and leave the pixels (exiftool -Orientation=)'
    if turned != image.size and labelled == turned:
        return f'its labels are for the upright image: {upright}'
    if turned != image.size and labelled == image.size:
        return f'training turns it upright, and its labels are for the image as it is stored: {unmarked}'
    return f'training turns it upright. If its labels fit it so, {upright}. If not, {unmarked}'
