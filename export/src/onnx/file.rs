//! The ONNX file of a graph. It grows on the disk while the graph is drawn, so that of a large network only the tensor in hand is in
//! memory; engines read it from there.

use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint};
use tempfile::NamedTempFile;
use tract_onnx::pb::{GraphProto, ModelProto, TensorProto};

/// Numbers of the fields whose content is written by hand: `ModelProto.graph`, `GraphProto.initializer`, `TensorProto.raw_data`.
const GRAPH: u32 = 7;
const INITIALIZER: u32 = 5;
const RAW_DATA: u32 = 9;

/// An ONNX file in the folder of temporary files (`TMPDIR`), gone with this value.
#[derive(Debug)]
pub struct OnnxFile {
    file: Temporary,
    bytes: usize,
}

/// On Linux it has no name, so that an export that is killed leaves nothing behind.
#[derive(Debug)]
enum Temporary {
    Unnamed { file: File, path: PathBuf },
    Named(NamedTempFile),
}

impl Temporary {
    fn new() -> io::Result<Self> {
        let file = tempfile::tempfile()?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if path.exists() {
            return Ok(Self::Unnamed { file, path });
        }
        Ok(Self::Named(tempfile::Builder::new().prefix("sa-export-").suffix(".onnx").tempfile()?))
    }

    fn file(&self) -> &File {
        match self {
            Self::Unnamed { file, .. } => file,
            Self::Named(file) => file.as_file(),
        }
    }
}

impl OnnxFile {
    pub fn path(&self) -> &Path {
        match &self.file {
            Temporary::Unnamed { path, .. } => path,
            Temporary::Named(file) => file.path(),
        }
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Writes a copy.
    pub fn copy(&self, to: &Path) -> io::Result<()> {
        // The permissions of a temporary file are not those of a file for others, so they are not copied.
        io::copy(&mut File::open(self.path())?, &mut File::create(to)?).map(|_| ())
    }
}

/// Gives the content of a tensor, piece by piece: no second copy of a large one is made.
pub(super) type Pieces<'a> = &'a dyn Fn(Sink);
/// What takes the pieces, and says whether it wants the next one.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> bool;

/// The initialisers so far, as they will stand in the file. What goes wrong is told at the end: drawing cannot fail.
pub(super) struct Spool {
    file: io::Result<BufWriter<File>>,
    bytes: usize,
}

impl Spool {
    pub fn new() -> Self {
        Self { file: tempfile::tempfile().map(BufWriter::new), bytes: 0 }
    }

    /// Appends a tensor whose content is `bytes` long and comes in pieces; gives the place of the content.
    pub fn add(&mut self, tensor: &TensorProto, bytes: usize, pieces: Pieces) -> u64 {
        let Ok(file) = &mut self.file else { return 0 };
        let mut head = tensor.encode_to_vec();
        length_delimited(RAW_DATA, bytes, &mut head);
        let mut start = Vec::new();
        length_delimited(INITIALIZER, head.len() + bytes, &mut start);
        let mut written = file.write_all(&start).and_then(|()| file.write_all(&head));
        if written.is_ok() {
            pieces(&mut |piece| {
                written = file.write_all(piece);
                written.is_ok()
            });
        }
        let place = self.bytes + start.len() + head.len();
        match written {
            Ok(()) => self.bytes = place + bytes,
            Err(error) => self.file = Err(error),
        }
        place as u64
    }

    /// Is this the content at the place of a tensor? What cannot be read is not.
    pub fn holds(&mut self, place: u64, pieces: Pieces) -> bool {
        let Ok(file) = &mut self.file else { return false };
        let mut same = file.flush().is_ok();
        let (mut place, mut stored) = (place, Vec::new());
        if same {
            pieces(&mut |piece| {
                stored.resize(piece.len(), 0);
                same = file.get_ref().read_exact_at(&mut stored, place).is_ok() && stored == piece;
                place += piece.len() as u64;
                same
            });
        }
        same
    }

    /// The file: what stands before the initialisers, they, and what stands behind them, each a graph in a model.
    pub fn finish(
        self,
        (model, graph): (ModelProto, GraphProto),
        (model_end, graph_end): (ModelProto, GraphProto),
    ) -> io::Result<OnnxFile> {
        let mut initialisers = self.file?.into_inner().map_err(io::IntoInnerError::into_error)?;
        initialisers.rewind()?;
        let (mut start, graph, graph_end) = (model.encode_to_vec(), graph.encode_to_vec(), graph_end.encode_to_vec());
        length_delimited(GRAPH, graph.len() + self.bytes + graph_end.len(), &mut start);
        let file = Temporary::new()?;
        let mut to = file.file();
        to.write_all(&start)?;
        to.write_all(&graph)?;
        io::copy(&mut initialisers, &mut to)?;
        to.write_all(&graph_end)?;
        to.write_all(&model_end.encode_to_vec())?;
        let bytes = to.stream_position()? as usize;
        Ok(OnnxFile { file, bytes })
    }
}

/// Elements that are turned into bytes at once.
const PIECE: usize = 1 << 14;

/// The bytes of `data`, piece by piece.
pub(super) fn in_pieces<T: Copy, const N: usize>(data: &[T], bytes: impl Fn(T) -> [u8; N]) -> impl Fn(Sink) {
    move |sink| {
        let mut buffer = vec![[0; N]; PIECE.min(data.len())];
        for piece in data.chunks(PIECE) {
            let buffer = &mut buffer[..piece.len()];
            buffer.iter_mut().zip(piece).for_each(|(to, x)| *to = bytes(*x));
            if !sink(buffer.as_flattened()) {
                break;
            }
        }
    }
}

/// The head of a field of so many bytes.
fn length_delimited(field: u32, bytes: usize, to: &mut Vec<u8>) {
    encode_key(field, WireType::LengthDelimited, to);
    encode_varint(bytes as u64, to);
}
