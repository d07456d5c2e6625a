//! What the function makes of images, good and hostile, called as an executor calls it.

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, GenericImageView, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};
use thumbnailer::{MAX_THUMBNAIL_BYTES, sample, thumbnail};

fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    image.into().write_to(&mut file, ImageFormat::Png).expect("PNG takes every kind of pixel");
    file.into_inner()
}

fn jpeg(image: &RgbImage) -> Vec<u8> {
    let mut file = Vec::new();
    JpegEncoder::new(&mut file).encode_image(image).expect("a size that JPEG has room for");
    file
}

fn open(jpeg: &[u8]) -> DynamicImage {
    image::load_from_memory_with_format(jpeg, ImageFormat::Jpeg).expect("the function makes JPEG")
}

fn plain(width: u32, height: u32) -> RgbImage {
    RgbImage::from_pixel(width, height, Rgb([20, 120, 220]))
}

/// Calls the exported function on a copy of `input`, as an executor does.
#[allow(unsafe_code)] // the function's interface
fn call(input: &[u8]) -> Vec<u8> {
    let mut output = vec![0_u8; MAX_THUMBNAIL_BYTES];
    let bytes = input.len() as u32;
    // SAFETY: a slice of `bytes` bytes, and an output of the size that the function asks for.
    let written = unsafe { thumbnailer::thumbnailer(input.as_ptr(), bytes, output.as_mut_ptr()) };
    output.truncate(written as usize);
    output
}

#[test]
fn a_photograph_becomes_a_thumbnail_of_its_shape() {
    let photograph = sample::photograph(1200, 900).unwrap();
    let made = call(&photograph);
    assert!(made.len() < photograph.len());
    assert_eq!(open(&made).dimensions(), (200, 150));
    assert_eq!(made, thumbnail(&photograph).unwrap());
}

#[test]
fn a_png_becomes_a_jpeg() {
    assert_eq!(open(&call(&png(plain(300, 600)))).dimensions(), (100, 200));
}

#[test]
fn colours_survive() {
    let made = open(&thumbnail(&png(plain(500, 500))).unwrap());
    let Rgba([red, green, blue, _]) = made.get_pixel(100, 100);
    for (is, was) in [(red, 20), (green, 120), (blue, 220_u8)] {
        assert!(is.abs_diff(was) < 6, "{is} instead of {was}");
    }
}

#[test]
fn a_small_image_is_not_enlarged() {
    assert_eq!(open(&thumbnail(&png(plain(40, 30))).unwrap()).dimensions(), (40, 30));
}

#[test]
fn a_strip_keeps_at_least_one_pixel() {
    assert_eq!(open(&thumbnail(&png(plain(5000, 1))).unwrap()).dimensions(), (200, 1));
}

#[test]
fn the_transparent_becomes_white() {
    let glass = RgbaImage::from_pixel(50, 50, Rgba([0, 0, 0, 0]));
    let made = open(&thumbnail(&png(glass)).unwrap());
    assert!(made.get_pixel(25, 25).0.iter().all(|&c| c > 250));
}

#[test]
fn a_photograph_taken_sideways_is_turned_upright() {
    let mut file = jpeg(&plain(400, 200));
    // APP1 with one EXIF entry: tag 0x0112 (orientation), type short, value 6: turn clockwise.
    let exif = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    file.splice(2..2, exif.iter().copied());
    assert_eq!(open(&thumbnail(&file).unwrap()).dimensions(), (100, 200));
}

#[test]
fn noise_compresses_to_less_than_the_bound() {
    let mut state = 1_u32;
    let noise = RgbImage::from_fn(200, 200, |_, _| {
        state = state.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
        let [a, b, c, _] = (state ^ (state >> 15)).to_le_bytes();
        Rgb([a, b, c])
    });
    assert!(thumbnail(&png(noise)).unwrap().len() < MAX_THUMBNAIL_BYTES / 2);
}

#[test]
fn what_is_no_image_has_no_thumbnail() {
    let words = b"not an image, whatever its name".as_slice();
    let gif = b"GIF89a\x01\0\x01\0\0\0\0;".as_slice();
    for input in
        [words, gif, b"\xff\xd8\xff".as_slice(), b"\x89PNG\r\n\x1a\n".as_slice(), b"x", b""]
    {
        assert!(call(input).is_empty());
        assert!(thumbnail(input).is_err());
    }
}

#[test]
fn every_truncation_is_answered() {
    for file in [jpeg(&plain(64, 64)), png(plain(64, 64))] {
        for end in 0..file.len() {
            call(&file[..end]);
        }
    }
}

#[test]
fn every_flipped_byte_is_answered() {
    for mut file in [jpeg(&plain(32, 32)), png(plain(32, 32))] {
        for at in 0..file.len() {
            file[at] ^= 0xff;
            call(&file);
            file[at] ^= 0xff;
        }
    }
}

#[test]
fn a_jpeg_that_claims_four_thousand_megapixels_is_refused() {
    let mut file = jpeg(&plain(16, 16));
    let frame = file.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    file[frame + 5..frame + 9].fill(0xff); // height and width
    assert!(matches!(thumbnail(&file), Err(image::ImageError::Limits(_))));
    assert!(call(&file).is_empty());
}

#[test]
fn a_png_that_claims_four_thousand_megapixels_is_refused() {
    let mut file = png(plain(16, 16));
    file[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]); // width and height
    let checksum = crc32(&file[12..29]).to_be_bytes();
    file[29..33].copy_from_slice(&checksum);
    assert!(matches!(thumbnail(&file), Err(image::ImageError::Limits(_))));
    assert!(call(&file).is_empty());
}

/// Returns the checksum of a PNG chunk.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}
