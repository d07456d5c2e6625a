//! The image pipeline: what is decoded goes to two functions at once.

use std::fs;
use std::path::Path;

use ::image::ImageReader;
use graphs::image::{combine, made, pixel_bytes};
use rfaas::Graph;
use rfaas_function::Output;
use rfaas_program::Failure;
use thumbnailer::MAX_THUMBNAIL_BYTES;

use crate::caller::Caller;
use crate::{Make, Scene};

/// Most bytes of the name of a class.
const CLASS_BYTES: usize = 64;

pub(crate) fn run(scene: &Scene, file: &[u8], out_file: &Path) -> Result<String, Failure> {
    let size = ImageReader::new(std::io::Cursor::new(file)).with_guessed_format();
    let size = size.ok().and_then(|reader| reader.into_dimensions().ok());
    let (Some((width, height)), Some(expected)) = (size, made(file)) else {
        return Err(Failure::input("the image is neither JPEG nor PNG, damaged, or too large"));
    };
    let pixels = pixel_bytes(width, height);
    let both = MAX_THUMBNAIL_BYTES + CLASS_BYTES;

    let mut graph = Graph::new();
    let [decode, thumbnail, classify, last] =
        ["image_decode", "image_thumbnail", "image_classify", "image_combine"]
            .map(|name| graph.function(&scene.library, name));
    graph.input(decode, file.len());
    graph.edge(decode, thumbnail, pixels).edge(decode, classify, pixels);
    graph.edge(thumbnail, last, MAX_THUMBNAIL_BYTES).edge(classify, last, CLASS_BYTES);
    graph.output(last, both);
    let mut compiled = scene.compile(&mut graph)?;
    let mut by_graph = || -> Result<_, Failure> { Ok(compiled.run(file)?.concat()) };
    let end = by_graph()?;
    if end != expected {
        return Err(Failure::later("the graph and a plain computation differ"));
    }

    let by_client = || -> Result<Make, Failure> {
        let mut decode = Caller::new(scene, "image_decode", 1, 1, (file.len(), pixels))?;
        let sizes = (pixels, MAX_THUMBNAIL_BYTES);
        let mut thumbnail = Caller::new(scene, "image_thumbnail", 1, 1, sizes)?;
        let mut classify = Caller::new(scene, "image_classify", 1, 1, (pixels, CLASS_BYTES))?;
        let file = file.to_vec();
        let make = move || -> Result<Vec<u8>, Failure> {
            let pixels = decode.call(&file)?;
            // At once, as in the graph.
            let (small, class) = std::thread::scope(|scope| {
                let small = scope.spawn(|| thumbnail.call(&pixels));
                let class = classify.call(&pixels);
                (small.join().unwrap_or_else(|_| Err(Failure::later("a thread panicked"))), class)
            });
            let mut place = vec![0; both];
            let mut output = Output::new(&mut place);
            combine(&small?, &class?, &mut output)
                .map_err(|_| Failure::later("they do not fit"))?;
            Ok(output.written().to_vec())
        };
        Ok(Box::new(make))
    };
    let compared = scene.compared(&end, &mut by_graph, by_client)?;
    compiled.release()?;

    let line = end.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (class, jpeg) = (String::from_utf8_lossy(&end[..line]), &end[(line + 1).min(end.len())..]);
    fs::write(out_file, jpeg).map_err(|error| {
        Failure::input(format!("{}: cannot be written: {error}", out_file.display()))
    })?;
    let bytes = jpeg.len();
    Ok(format!("{width} x {height}, {class}, thumbnail of {bytes} bytes\n{compared}"))
}
