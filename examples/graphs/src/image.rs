//! A photograph into a thumbnail and the colour that most of it has.
//!
//! ```text
//!               ┌─▶ thumbnail ─┐
//!   decode ─────┤              ├─▶ combine        pixels: width u32 │ height u32 │ red, green, blue u8 of each
//!               └─▶ classify ──┘
//! ```
//! "Classify" is no more than that: each pixel belongs to the nearest of eight colours, and the one with most pixels is
//! the class. Nothing is learnt here.

use image::metadata::Orientation;
use image::{DynamicImage, RgbImage};
use rfaas_function::{Failure, Output, function};

/// Classes, and the colour of each.
pub const CLASSES: [(&str, [u8; 3]); 8] = [
    ("black", [0, 0, 0]),
    ("white", [255, 255, 255]),
    ("grey", [128, 128, 128]),
    ("red", [200, 40, 40]),
    ("green", [50, 140, 50]),
    ("blue", [70, 120, 200]),
    ("yellow", [230, 210, 60]),
    ("brown", [120, 80, 40]),
];

/// Codes of runs that fail: no image, or one that is too large; no pixels.
const NO_IMAGE: i32 = 1;
const NO_PIXELS: i32 = 2;

/// Returns the bytes of the pixels of an image of this size.
pub fn pixel_bytes(width: u32, height: u32) -> usize {
    8 + 3 * width as usize * height as usize
}

// A JPEG or PNG file into pixels.
function!(image_decode, |file, output, _| {
    let (mut decoded, orientation) =
        thumbnailer::decode(file).map_err(|_| Failure::new(NO_IMAGE))?;
    decoded.apply_orientation(orientation);
    let pixels = thumbnailer::on_white(&decoded);
    output.extend(&pixels.width().to_le_bytes())?;
    output.extend(&pixels.height().to_le_bytes())?;
    output.extend(pixels.as_raw()).map_err(Failure::from)
});

/// Returns width, height, and what is behind them.
fn pixels(payload: &[u8]) -> Result<(u32, u32, &[u8]), Failure> {
    let read = || {
        let (width, rest) = payload.split_first_chunk()?;
        let (height, rest) = rest.split_first_chunk()?;
        let (width, height) = (u32::from_le_bytes(*width), u32::from_le_bytes(*height));
        let bytes = 3 * u128::from(width) * u128::from(height);
        (rest.len() as u128 == bytes).then_some((width, height, rest))
    };
    read().ok_or(Failure::new(NO_PIXELS))
}

// Pixels into a JPEG file.
function!(image_thumbnail, |payload, output, _| {
    let (width, height, raw) = pixels(payload)?;
    let image = RgbImage::from_raw(width, height, raw.to_vec()).ok_or(Failure::new(NO_PIXELS))?;
    let image = DynamicImage::ImageRgb8(image);
    let jpeg = thumbnailer::of_pixels(image, Orientation::NoTransforms)
        .map_err(|_| Failure::new(NO_IMAGE))?;
    output.extend(&jpeg).map_err(Failure::from)
});

// Pixels into the name of a class.
function!(image_classify, |payload, output, _| {
    let (_, _, raw) = pixels(payload)?;
    output.extend(class(raw).as_bytes()).map_err(Failure::from)
});

/// Returns the class of `raw`, red, green and blue of each pixel.
fn class(raw: &[u8]) -> &'static str {
    let mut counts = [0_u64; CLASSES.len()];
    for pixel in raw.as_chunks::<3>().0 {
        let distance = |colour: &[u8; 3]| -> u32 {
            let parts = colour.iter().zip(pixel);
            parts.map(|(one, other)| u32::from(one.abs_diff(*other)).pow(2)).sum()
        };
        let nearest = (0..CLASSES.len()).min_by_key(|&class| distance(&CLASSES[class].1));
        counts[nearest.unwrap_or(0)] += 1;
    }
    let most = (0..CLASSES.len()).rev().max_by_key(|&class| counts[class]);
    CLASSES[most.unwrap_or(0)].0
}

// A thumbnail and a class into a line with the class, and the thumbnail behind it.
function!(image_combine, |thumbnail, output, call| { combine(thumbnail, call.input(1)?, output) });

/// Writes what both are combined to.
pub fn combine(thumbnail: &[u8], class: &[u8], output: &mut Output<'_>) -> Result<(), Failure> {
    output.extend(class)?;
    output.extend(b"\n")?;
    output.extend(thumbnail)?;
    Ok(())
}

/// The same in one process: returns what `combine` does.
pub fn made(file: &[u8]) -> Option<Vec<u8>> {
    let (mut decoded, orientation) = thumbnailer::decode(file).ok()?;
    decoded.apply_orientation(orientation);
    let pixels = DynamicImage::ImageRgb8(thumbnailer::on_white(&decoded));
    let mut made = class(pixels.as_bytes()).as_bytes().to_vec();
    made.push(b'\n');
    made.extend(thumbnailer::of_pixels(pixels, Orientation::NoTransforms).ok()?);
    Some(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_the_colour_of_most_pixels() {
        assert_eq!(class(&[60, 130, 190, 60, 130, 190, 0, 0, 0]), "blue");
        assert_eq!(class(&[250, 250, 250]), "white");
        assert_eq!(class(&[]), "black", "the first, of none");
    }

    #[test]
    fn what_are_no_pixels_is_refused() {
        assert!(pixels(&[0; 7]).is_err());
        assert!(pixels(&[1, 0, 0, 0, 1, 0, 0, 0, 1, 2]).is_err());
        assert!(pixels(&[255; 64]).is_err());
        assert_eq!(pixels(&[1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3]).unwrap(), (1, 1, &[1, 2, 3][..]));
    }
}
