//! An image to try the thumbnailer with, as large as a photograph and as hard to compress: the
//! repository carries no photograph, and the same numbers make the same file everywhere.

use image::codecs::jpeg::JpegEncoder;
use image::{ImageResult, Rgb, RgbImage};

/// Width of a photograph of 12 megapixels, in pixels.
pub const WIDTH: u32 = 4000;
/// Its height, in pixels.
pub const HEIGHT: u32 = 3000;

/// JPEG quality as cameras choose it.
const QUALITY: u8 = 92;
/// Largest deviation of a pixel's brightness from the picture: the grain of a high ISO setting.
const GRAIN: u32 = 24;

/// Returns the bytes of a JPEG file of `width` × `height` pixels: an evening sky over hills, with
/// grain.
///
/// # Errors
/// A side of 0 pixels, or of more than the 65535 that JPEG has room for.
pub fn photograph(width: u32, height: u32) -> ImageResult<Vec<u8>> {
    let mut grain = Grain(0x9e37_79b9_7f4a_7c15);
    let picture = RgbImage::from_fn(width, height, |x, y| {
        let noise = grain.next() % (2 * GRAIN);
        let Rgb(colour) = paint(x, y, width, height);
        Rgb(colour.map(|c| (u32::from(c) + noise).saturating_sub(GRAIN).min(255) as u8))
    });
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&picture)?;
    Ok(jpeg)
}

/// Returns the picture without grain. Coordinates run to 1 in both directions, so that it looks the
/// same in every size.
fn paint(x: u32, y: u32, width: u32, height: u32) -> Rgb<u8> {
    let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
    let (sun_u, sun_v) = ((u - 0.7) * width as f32 / height as f32, v - 0.35);
    if v > 0.75 + 0.08 * (u * 9.0).sin() {
        Rgb([(30.0 + 40.0 * u) as u8, (90.0 - 40.0 * v) as u8, 45])
    } else if v > 0.55 + 0.06 * (u * 5.0 + 1.0).sin() {
        Rgb([60, (70.0 + 50.0 * u) as u8, (110.0 - 30.0 * u) as u8])
    } else if sun_u * sun_u + sun_v * sun_v < 0.01 {
        Rgb([255, 240, 190])
    } else {
        Rgb([(110.0 + 190.0 * v) as u8, (130.0 + 90.0 * v) as u8, (210.0 - 60.0 * v) as u8])
    }
}

/// Marsaglia's xorshift64: quick, and the same everywhere.
struct Grain(u64);

impl Grain {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as u32
    }
}
