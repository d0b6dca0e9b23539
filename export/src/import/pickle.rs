//! Reads the data in a pickle and executes nothing.
//!
//! A pickle is a program for a stack machine whose `REDUCE` and `BUILD` steps call Python functions. Here they only note what would
//! be called and with what; `torch` and `arrays` know what a handful of those notes mean. A pickle that names a function outside
//! the libraries that checkpoints are made of is refused, because then it is not (only) data. Format: Python's `pickletools`,
//! protocols 0 to 5; joblib's arrays, which stand as raw bytes inside of the stream, after `joblib.numpy_pickle`.

use std::collections::HashMap;
use std::sync::Arc;

use super::arrays;

/// Where a value stands in [`Pickle`]: values are shared and may hold themselves.
pub type Id = usize;

/// A value of a pickle.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    Bytes(Arc<[u8]>),
    /// Lists, tuples and sets.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or a function: `module.name`.
    Global(Arc<str>),
    /// What a call of `class` would have made.
    Object(Box<Object>),
    /// An object that is kept outside of the pickle, such as a tensor's storage.
    Persistent(Id),
}

/// A call that was not made, and what would then have been put into its result.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// `module.name` of the class or function.
    pub class: Arc<str>,
    pub arguments: Vec<Id>,
    /// For `__setstate__`.
    pub state: Option<Id>,
    /// Entries of a dictionary such as `collections.OrderedDict`.
    pub items: Vec<(Id, Id)>,
    /// Elements of a list such as `torch.Size`.
    pub elements: Vec<Id>,
    /// The raw bytes of a joblib array.
    pub raw: Option<Arc<[u8]>>,
}

/// Why a pickle was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// The file is truncated: copy or download it again.
    #[error("the pickle ends in the middle, at byte {0}; it may be truncated")]
    Truncated(usize),
    /// The file is damaged, or no pickle at all.
    #[error("byte {at} of the pickle is damaged: {what}")]
    Damaged { at: usize, what: String },
    /// Ask whoever made the file for one with tensors only (safetensors, say).
    #[error("the pickle asks to run `{0}`, which is no part of a checkpoint's data: refused, and nothing was run")]
    Code(String),
    #[error("{0}; save it without that, or as safetensors")]
    Unsupported(String),
}

type Result<T> = std::result::Result<T, PickleError>;

/// Modules whose classes and functions stand for data in checkpoints.
const LIBRARIES: [&str; 9] = ["torch", "numpy", "collections", "sklearn", "joblib", "fairseq", "omegaconf", "argparse", "typing"];
/// Single names beside those.
const NAMES: [&str; 16] = [
    "builtins.set",
    "builtins.frozenset",
    "builtins.list",
    "builtins.dict",
    "builtins.tuple",
    "builtins.int",
    "builtins.float",
    "builtins.bool",
    "builtins.str",
    "builtins.bytes",
    "builtins.bytearray",
    "builtins.slice",
    "builtins.complex",
    "_codecs.encode",
    "copyreg._reconstructor",
    "builtins.object",
];
/// Functions of those libraries that would run what they are given.
const RUNNERS: [&str; 6] = ["eval", "exec", "system", "load", "runstring", "__import__"];
/// More values than the pickle of any checkpoint has, copies of arguments and of names included; a small file cannot make more.
const MOST_VALUES: usize = 20_000_000;
/// Most axes of an array; PyTorch and NumPy have no more.
const MOST_AXES: usize = 64;

fn allowed(name: &str) -> bool {
    let name = name.replacen("__builtin__.", "builtins.", 1).replacen("copy_reg.", "copyreg.", 1);
    let library = name.split('.').next().unwrap_or_default();
    let last = name.rsplit('.').next().unwrap_or_default();
    NAMES.contains(&name.as_str()) || (LIBRARIES.contains(&library) && !RUNNERS.contains(&last))
}

/// A pickle's values, and where the outermost stands.
#[derive(Debug)]
pub struct Pickle {
    values: Values,
    root: Id,
    length: usize,
}

impl Pickle {
    /// Reads the pickle at the start of `bytes`; what follows it is left alone.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        let mut machine =
            Machine { bytes, at: 0, values: Values::default(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), copied: 0 };
        let root = machine.run()?;
        Ok(Self { values: machine.values, root, length: machine.at })
    }

    pub fn root(&self) -> Id {
        self.root
    }

    /// Bytes that the pickle takes.
    pub fn length(&self) -> usize {
        self.length
    }
}

impl std::ops::Deref for Pickle {
    type Target = Values;
    fn deref(&self) -> &Values {
        &self.values
    }
}

/// Values that refer to each other.
#[derive(Debug, Default)]
pub struct Values(Vec<Value>);

impl Values {
    pub fn value(&self, id: Id) -> &Value {
        &self.0[id]
    }

    /// The value at `id`, if there are so many.
    pub fn try_value(&self, id: Id) -> Option<&Value> {
        self.0.get(id)
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match self.value(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn int(&self, id: Id) -> Option<i64> {
        match self.value(id) {
            Value::Int(int) => Some(*int),
            Value::Bool(value) => Some(i64::from(*value)),
            _ => None,
        }
    }

    /// Elements of a list, tuple, set, or of an object that is one.
    pub fn sequence(&self, id: Id) -> Option<&[Id]> {
        match self.value(id) {
            Value::Sequence(elements) => Some(elements),
            Value::Object(object) if !object.elements.is_empty() => Some(&object.elements),
            // `torch.Size((2, 3))`
            Value::Object(object) if object.arguments.len() == 1 => match self.value(object.arguments[0]) {
                Value::Sequence(elements) => Some(elements),
                _ => None,
            },
            _ => None,
        }
    }

    /// A list or tuple of sizes; `None` for one of more axes than arrays have: many tensors may share it, and each gets a copy.
    pub fn sizes(&self, id: Id) -> Option<Vec<usize>> {
        self.sequence(id).filter(|sizes| sizes.len() <= MOST_AXES)?.iter().map(|id| usize::try_from(self.int(*id)?).ok()).collect()
    }

    /// Entries of a dictionary, or of an object that is one.
    pub fn entries(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.value(id) {
            Value::Dict(entries) => Some(entries),
            Value::Object(object) => Some(&object.items),
            _ => None,
        }
    }

    /// What a dictionary, or the state of an object, holds under `key`.
    pub fn get(&self, id: Id, key: &str) -> Option<Id> {
        let find = |entries: &[(Id, Id)]| entries.iter().rev().find(|(k, _)| self.text(*k) == Some(key)).map(|(_, value)| *value);
        match self.value(id) {
            Value::Dict(entries) => find(entries),
            Value::Object(object) => find(&object.items).or_else(|| match self.value(object.state?) {
                Value::Dict(entries) => find(entries),
                _ => None,
            }),
            _ => None,
        }
    }

    pub fn object(&self, id: Id) -> Option<&Object> {
        match self.value(id) {
            Value::Object(object) => Some(object),
            _ => None,
        }
    }

    /// The first object of this class.
    pub fn find(&self, class: impl Fn(&str) -> bool) -> Option<Id> {
        (0..self.0.len()).find(|id| self.object(*id).is_some_and(|object| class(&object.class)))
    }
}

/// The entries that a flat list of keys and values stands for; a key without a value is left.
fn pairs(flat: &[Id]) -> Vec<(Id, Id)> {
    flat.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Values,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
    /// Elements and characters that were copied: a few bytes of the file can ask for the same large tuple again and again.
    copied: usize,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id> {
        loop {
            let at = self.at;
            let code = self.take(1)?[0];
            if code == b'.' {
                return self.pop();
            }
            self.step(code, at)?;
            self.within()?;
        }
    }

    fn within(&self) -> Result<()> {
        if self.values.0.len() + self.copied > MOST_VALUES {
            return Err(PickleError::Unsupported("the pickle holds more values than any checkpoint".into()));
        }
        Ok(())
    }

    /// Counts what is about to be copied.
    fn copies(&mut self, count: usize) -> Result<()> {
        self.copied += count;
        self.within()
    }

    fn step(&mut self, code: u8, at: usize) -> Result<()> {
        match code {
            // PROTO, FRAME
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = *self.stack.last().ok_or_else(|| self.damaged(at, "nothing to copy"))?;
                self.stack.push(top);
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' | b'K' | b'M' | b'I' | b'L' | 0x8a | 0x8b => self.integer(code, at)?,
            b'F' => {
                let line = self.line()?;
                let value = line.trim().parse().map_err(|_| self.damaged(at, "no number"))?;
                self.push(Value::Float(value));
            }
            b'G' => {
                let bytes = self.take(8)?.try_into().expect("eight bytes were taken");
                self.push(Value::Float(f64::from_be_bytes(bytes)));
            }
            b'S' | b'V' | b'T' | b'U' | b'X' | 0x8c | 0x8d | b'B' | b'C' | 0x8e | 0x96 => self.string(code, at)?,
            b']' | b')' | 0x8f => self.push(Value::Sequence(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b'l' | b't' | 0x91 => {
                let elements = self.pop_to_mark()?;
                self.push(Value::Sequence(elements));
            }
            0x85..=0x87 => {
                let elements = self.pop_many(usize::from(code - 0x84))?;
                self.push(Value::Sequence(elements));
            }
            b'd' => {
                let entries = pairs(&self.pop_to_mark()?);
                self.push(Value::Dict(entries));
            }
            b'a' => {
                let element = self.pop()?;
                self.extend(&[element], at)?;
            }
            b'e' | 0x90 => {
                let elements = self.pop_to_mark()?;
                self.extend(&elements, at)?;
            }
            b's' => {
                let entry = self.pop_many(2)?;
                self.insert(pairs(&entry), at)?;
            }
            b'u' => {
                let entries = self.pop_to_mark()?;
                self.insert(pairs(&entries), at)?;
            }
            b'p' | b'q' | b'r' | 0x94 | b'g' | b'h' | b'j' => self.memo(code, at)?,
            b'P' => {
                let line = self.line()?;
                let id = self.add(Value::Text(line));
                self.push(Value::Persistent(id));
            }
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id));
            }
            b'c' | 0x93 | b'i' | b'o' | b'R' | 0x81 | 0x92 => self.call(code, at)?,
            b'b' => self.build(at)?,
            0x82..=0x84 => return Err(PickleError::Unsupported("the pickle uses registered extension codes".into())),
            0x97 | 0x98 => return Err(PickleError::Unsupported("the pickle keeps buffers outside of itself".into())),
            _ => return Err(self.damaged(at, &format!("{code:#04x} is no instruction"))),
        }
        Ok(())
    }

    fn integer(&mut self, code: u8, at: usize) -> Result<()> {
        let value = match code {
            b'J' => Value::Int(i64::from(i32::from_le_bytes(self.take(4)?.try_into().expect("four bytes were taken")))),
            b'K' => Value::Int(i64::from(self.take(1)?[0])),
            b'M' => Value::Int(i64::from(u16::from_le_bytes(self.take(2)?.try_into().expect("two bytes were taken")))),
            b'I' => match self.line()?.as_str() {
                "00" => Value::Bool(false),
                "01" => Value::Bool(true),
                line => Value::Int(line.trim().parse().map_err(|_| self.damaged(at, "no number"))?),
            },
            b'L' => {
                let line = self.line()?;
                Value::Int(line.trim().trim_end_matches('L').parse().map_err(|_| self.damaged(at, "no number"))?)
            }
            _ => {
                let length = if code == 0x8a { usize::from(self.take(1)?[0]) } else { self.length(4, at)? };
                let bytes = self.take(length)?;
                // Longer numbers (random states) are no part of what is read: only their place is kept.
                let mut wide = [if bytes.last().is_some_and(|byte| *byte >= 0x80) { 0xff } else { 0 }; 8];
                let kept = length.min(8);
                wide[..kept].copy_from_slice(&bytes[..kept]);
                Value::Int(i64::from_le_bytes(wide))
            }
        };
        self.push(value);
        Ok(())
    }

    fn string(&mut self, code: u8, at: usize) -> Result<()> {
        let value = match code {
            b'S' => {
                let line = self.line()?;
                let line = line.trim();
                let quoted =
                    line.len() >= 2 && (line.starts_with('\'') && line.ends_with('\'') || line.starts_with('"') && line.ends_with('"'));
                if !quoted {
                    return Err(self.damaged(at, "a string without quotes"));
                }
                Value::Text(line[1..line.len() - 1].to_owned())
            }
            b'V' => Value::Text(self.line()?),
            _ => {
                let width = match code {
                    b'U' | 0x8c | b'C' => 1,
                    b'T' | b'X' | b'B' => 4,
                    _ => 8,
                };
                let length = self.length(width, at)?;
                let bytes = self.take(length)?;
                match code {
                    b'B' | b'C' | 0x8e | 0x96 => Value::Bytes(bytes.into()),
                    // Python 2 wrote bytes as strings; as text they are only looked at where they are ASCII.
                    b'T' | b'U' => match std::str::from_utf8(bytes) {
                        Ok(text) => Value::Text(text.to_owned()),
                        Err(_) => Value::Bytes(bytes.into()),
                    },
                    _ => Value::Text(String::from_utf8(bytes.into()).map_err(|_| self.damaged(at, "text that is not UTF-8"))?),
                }
            }
        };
        self.push(value);
        Ok(())
    }

    fn memo(&mut self, code: u8, at: usize) -> Result<()> {
        let index = match code {
            b'p' | b'g' => self.line()?.trim().parse().map_err(|_| self.damaged(at, "no number"))?,
            b'q' | b'h' => usize::from(self.take(1)?[0]),
            0x94 => self.memo.len(),
            _ => self.length(4, at)?,
        };
        if matches!(code, b'g' | b'h' | b'j') {
            let id = *self.memo.get(&index).ok_or_else(|| self.damaged(at, "a value that was never kept is asked for"))?;
            self.stack.push(id);
        } else {
            let top = *self.stack.last().ok_or_else(|| self.damaged(at, "nothing to keep"))?;
            self.memo.insert(index, top);
        }
        Ok(())
    }

    /// Names of classes and functions, and calls of them.
    fn call(&mut self, code: u8, at: usize) -> Result<()> {
        if code == b'c' || code == 0x93 {
            let name = if code == b'c' {
                format!("{}.{}", self.line()?, self.line()?)
            } else {
                let parts = self.pop_many(2)?;
                let length = parts.iter().map(|part| self.values.text(*part).map(str::len)).sum::<Option<usize>>();
                self.copies(length.ok_or_else(|| self.damaged(at, "a class without a name"))?)?;
                let text = |part: Id| self.values.text(part).unwrap_or_default();
                format!("{}.{}", text(parts[0]), text(parts[1]))
            };
            return self.global(name);
        }
        if code == b'i' {
            let name = format!("{}.{}", self.line()?, self.line()?);
            let arguments = self.pop_to_mark()?;
            self.global(name)?;
            let class = self.pop()?;
            return self.object(class, arguments, at);
        }
        if code == b'o' {
            let mut parts = self.pop_to_mark()?;
            if parts.is_empty() {
                return Err(self.damaged(at, "a call of nothing"));
            }
            let class = parts.remove(0);
            return self.object(class, parts, at);
        }
        if code == 0x92 {
            self.pop()?; // named arguments: no class that is read here has any
        }
        let parts = self.pop_many(2)?;
        let count = match self.values.value(parts[1]) {
            Value::Sequence(arguments) => arguments.len(),
            _ => return Err(self.damaged(at, "arguments that are no tuple")),
        };
        self.copies(count)?;
        let arguments = self.values.sequence(parts[1]).unwrap_or_default().to_vec();
        self.object(parts[0], arguments, at)
    }

    fn global(&mut self, name: String) -> Result<()> {
        if !allowed(&name) {
            return Err(PickleError::Code(name));
        }
        self.push(Value::Global(name.into()));
        Ok(())
    }

    fn object(&mut self, class: Id, mut arguments: Vec<Id>, at: usize) -> Result<()> {
        let mut class = match self.values.value(class) {
            Value::Global(name) => name.clone(),
            _ => return Err(self.damaged(at, "a call of what is no class")),
        };
        // `_reconstructor(class, base, state)` is how protocols 0 and 1 make any object.
        if class.ends_with("._reconstructor")
            && let Some(Value::Global(name)) = arguments.first().map(|id| self.values.value(*id))
        {
            class = name.clone();
            arguments.clear();
        }
        let object = Object { class, arguments, state: None, items: Vec::new(), elements: Vec::new(), raw: None };
        self.push(Value::Object(Box::new(object)));
        Ok(())
    }

    fn build(&mut self, at: usize) -> Result<()> {
        let state = self.pop()?;
        let target = *self.stack.last().ok_or_else(|| self.damaged(at, "a state of nothing"))?;
        let is_joblib_array = match &mut self.values.0[target] {
            Value::Object(object) => {
                object.state = Some(state);
                &*object.class == "joblib.numpy_pickle.NumpyArrayWrapper"
            }
            // `OrderedDict` subclasses of plain containers keep attributes nobody reads.
            _ => false,
        };
        if is_joblib_array {
            let raw = self.joblib_array(state, at)?;
            if let Value::Object(object) = &mut self.values.0[target] {
                object.raw = Some(raw);
            }
        }
        Ok(())
    }

    /// The bytes of an array that joblib wrote behind its description.
    fn joblib_array(&mut self, state: Id, at: usize) -> Result<Arc<[u8]>> {
        let (shape, size, aligned) = {
            let values = &self.values;
            let field = |key: &str| values.get(state, key).ok_or_else(|| self.damaged(at, &format!("an array without {key}")));
            let shape = values.sizes(field("shape")?).ok_or_else(|| self.damaged(at, "an array without a shape"))?;
            let size = arrays::item_size(values, field("dtype")?)
                .ok_or_else(|| PickleError::Unsupported("the file holds an array of Python objects".into()))?;
            let aligned = values.get(state, "numpy_array_alignment_bytes").is_some_and(|id| *values.value(id) != Value::None);
            (shape, size, aligned)
        };
        if aligned {
            let padding = usize::from(self.take(1)?[0]);
            self.take(padding)?;
        }
        let length = shape.iter().try_fold(size, |all, n| all.checked_mul(*n)).ok_or_else(|| self.damaged(at, "an array without end"))?;
        Ok(self.take(length)?.into())
    }

    fn extend(&mut self, more: &[Id], at: usize) -> Result<()> {
        let target = *self.stack.last().ok_or_else(|| self.damaged(at, "elements of nothing"))?;
        match &mut self.values.0[target] {
            Value::Sequence(elements) => elements.extend_from_slice(more),
            Value::Object(object) => object.elements.extend_from_slice(more),
            _ => return Err(self.damaged(at, "elements of what is no list")),
        }
        Ok(())
    }

    fn insert(&mut self, more: Vec<(Id, Id)>, at: usize) -> Result<()> {
        let target = *self.stack.last().ok_or_else(|| self.damaged(at, "entries of nothing"))?;
        match &mut self.values.0[target] {
            Value::Dict(entries) => entries.extend(more),
            Value::Object(object) => object.items.extend(more),
            _ => return Err(self.damaged(at, "entries of what is no dictionary")),
        }
        Ok(())
    }

    fn add(&mut self, value: Value) -> Id {
        self.values.0.push(value);
        self.values.0.len() - 1
    }

    fn push(&mut self, value: Value) {
        let id = self.add(value);
        self.stack.push(id);
    }

    fn pop(&mut self) -> Result<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(self.damaged(self.at, "the stack is empty"));
        }
        Ok(self.stack.pop().expect("it is not empty"))
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() < floor + count {
            return Err(self.damaged(self.at, "the stack is empty"));
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| self.damaged(self.at, "no mark"))?;
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len()).ok_or(PickleError::Truncated(self.bytes.len()))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    /// A length of `width` bytes, little-endian.
    fn length(&mut self, width: usize, at: usize) -> Result<usize> {
        let mut wide = [0; 8];
        wide[..width].copy_from_slice(self.take(width)?);
        usize::try_from(u64::from_le_bytes(wide)).map_err(|_| self.damaged(at, "a length beyond any file"))
    }

    fn line(&mut self) -> Result<String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|byte| *byte == b'\n').ok_or(PickleError::Truncated(self.bytes.len()))?;
        let line = std::str::from_utf8(&rest[..end]).map_err(|_| self.damaged(self.at, "text that is not UTF-8"))?.to_owned();
        self.at += end + 1;
        Ok(line)
    }

    fn damaged(&self, at: usize, what: &str) -> PickleError {
        PickleError::Damaged { at, what: what.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tuple of `count` references to one value, kept in the memo, and then `calls` calls with it.
    fn calls_with_one_tuple(count: usize, calls: usize) -> Vec<u8> {
        let mut bytes = b"\x80\x02ccollections\nOrderedDict\nq\x01Nq\x00(".to_vec();
        bytes.extend(b"h\x00".repeat(count));
        bytes.extend(b"tq\x02");
        bytes.extend(b"h\x01h\x02R0".repeat(calls));
        bytes.extend(b"N.");
        bytes
    }

    #[test]
    fn arguments_that_are_used_again_and_again_are_counted() {
        assert!(Pickle::read(&calls_with_one_tuple(3, 4)).is_ok());
        // 200 kB that would become 13 GB.
        let error = Pickle::read(&calls_with_one_tuple(50_000, 17_000)).expect_err("too many");
        assert!(error.to_string().contains("more values"), "{error}");
        // The same with a name.
        let mut bytes = b"\x80\x04X\xa0\x86\x01\x00".to_vec();
        bytes.extend(b"torch.".iter().chain(&[b'a'; 99_994]));
        bytes.extend(b"q\x00");
        bytes.extend(b"h\x00h\x00\x930".repeat(20_000));
        bytes.extend(b"N.");
        assert!(Pickle::read(&bytes).expect_err("too many").to_string().contains("more values"));
    }

    #[test]
    fn a_shape_has_few_axes() {
        let shape = |axes: usize| Pickle::read(&[b"(".as_slice(), &b"K\x01".repeat(axes), b"t."].concat()).expect("a tuple");
        assert_eq!(shape(3).sizes(shape(3).root()), Some(vec![1; 3]));
        assert_eq!(shape(65).sizes(shape(65).root()), None);
    }
}
