//! The function `thumbnailer`: the bytes of a JPEG or PNG image in, a JPEG thumbnail out.
//!
//! The image may come from anywhere, so it is hostile:
//! * BOUNDED - an image that would need more than [`MAX_DECODED_BYTES`] is refused after its header
//!   was read, before memory is taken for its pixels.
//! * TOTAL - whatever the bytes are, the caller gets a thumbnail or a length of 0, never a crash.
//!
//! The interface of functions returns a length and nothing else, so 0 is all that a caller learns of
//! an image that has no thumbnail; [`thumbnail`] is the same work with a reason.
//!
//! Elsewhere: sending images to leased cores (`client.rs`), an image to try with ([`sample`]).

use std::io::Cursor;

use image::codecs::jpeg::JpegEncoder;
use image::error::{DecodingError, ImageFormatHint, LimitError, LimitErrorKind};
use image::metadata::Orientation;
use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult, Limits, RgbImage,
};

pub mod sample;

/// A thumbnail fits a square of this many pixels a side.
pub const SIDE: u32 = 200;

/// No thumbnail is larger, in bytes: an output buffer of this size always suffices.
pub const MAX_THUMBNAIL_BYTES: usize = 128 * 1024;

/// Most memory that the pixels of an image may take, in bytes: 44 megapixels of 8-bit RGB, larger
/// than most cameras make. The decoder of progressive JPEG takes about twice as much on top while it
/// works; together that fits a lease of 512 MB.
pub const MAX_DECODED_BYTES: u64 = 128 * 1024 * 1024;

/// JPEG quality of thumbnails: artefacts are not visible at this size.
const QUALITY: u8 = 85;

/// Makes a thumbnail of `image`, a JPEG or PNG file: upright, with the image's aspect ratio, fitting
/// [`SIDE`] × [`SIDE`] pixels, never enlarged. What is transparent becomes white.
///
/// # Errors
/// Not a JPEG or PNG image, damaged, or larger than [`MAX_DECODED_BYTES`].
pub fn thumbnail(image: &[u8]) -> ImageResult<Vec<u8>> {
    let (decoded, orientation) = decode(image)?;
    of_pixels(decoded, orientation)
}

/// Does the same with pixels that have to be turned like this to be upright.
///
/// # Errors
/// The thumbnail would be larger than [`MAX_THUMBNAIL_BYTES`].
pub fn of_pixels(mut decoded: DynamicImage, orientation: Orientation) -> ImageResult<Vec<u8>> {
    if decoded.width() > SIDE || decoded.height() > SIDE {
        decoded = decoded.thumbnail(SIDE, SIDE);
    }
    // Turned only now: a quarter turn of the whole photograph would copy it.
    decoded.apply_orientation(orientation);
    let mut jpeg = Vec::with_capacity(MAX_THUMBNAIL_BYTES);
    JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&on_white(&decoded))?;
    if jpeg.len() > MAX_THUMBNAIL_BYTES {
        return Err(too_large());
    }
    Ok(jpeg)
}

/// Returns the pixels of `image`, and how they have to be turned to be upright.
///
/// # Errors
/// As [`thumbnail`].
pub fn decode(image: &[u8]) -> ImageResult<(DynamicImage, Orientation)> {
    let mut reader = ImageReader::new(Cursor::new(image)).with_guessed_format()?;
    match reader.format() {
        Some(ImageFormat::Jpeg | ImageFormat::Png) => {}
        other => {
            let hint = other.map_or(ImageFormatHint::Unknown, ImageFormatHint::Exact);
            return Err(ImageError::Decoding(DecodingError::new(hint, "neither JPEG nor PNG")));
        }
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    // BOUNDED. Decoders treat the limit as advice for their own buffers; this one is ours.
    if decoder.total_bytes() > MAX_DECODED_BYTES {
        return Err(too_large());
    }
    let orientation = decoder.orientation()?;
    Ok((DynamicImage::from_decoder(decoder)?, orientation))
}

/// JPEG has no transparency: lays `image` on white.
pub fn on_white(image: &DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.to_rgb8();
    }
    let rgba = image.to_rgba8();
    RgbImage::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [red, green, blue, alpha] = rgba.get_pixel(x, y).0.map(u32::from);
        let over_white = |colour: u32| ((colour * alpha + 255 * (255 - alpha)) / 255) as u8;
        image::Rgb([over_white(red), over_white(green), over_white(blue)])
    })
}

fn too_large() -> ImageError {
    ImageError::Limits(LimitError::from_kind(LimitErrorKind::InsufficientMemory))
}

/// The function that an executor calls.
#[allow(unsafe_code)] // the interface of functions is two raw pointers
mod entry {
    /// Writes a thumbnail of the image at `input` to `output` and returns its length in bytes; 0 if
    /// the input has no thumbnail.
    ///
    /// # Safety
    /// `input` holds `input_bytes` readable bytes, and `output` has room for
    /// [`MAX_THUMBNAIL_BYTES`](super::MAX_THUMBNAIL_BYTES) that nothing else refers to.
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn thumbnailer(
        input: *const u8,
        input_bytes: u32,
        output: *mut u8,
    ) -> u32 {
        if input_bytes == 0 {
            return 0; // no byte is promised at `input` then, so nothing may point there
        }
        // SAFETY: the caller promises these bytes, and they do not change meanwhile: only the client
        // writes to its input slots, and to none before the invocation that uses it is answered.
        let image = unsafe { std::slice::from_raw_parts(input, input_bytes as usize) };
        // TOTAL. A panic in the decoder must not unwind into the executor, which is a crash.
        let made = std::panic::catch_unwind(|| super::thumbnail(image));
        let Ok(Ok(jpeg)) = made else { return 0 };
        // SAFETY: `jpeg` has at most MAX_THUMBNAIL_BYTES (checked in `thumbnail`), which the caller
        // promises at `output`; it was allocated here, so the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(jpeg.as_ptr(), output, jpeg.len()) };
        jpeg.len() as u32
    }
}
pub use entry::thumbnailer;
