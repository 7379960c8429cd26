//! Reads through a pickle without building anything and refuses every name that is not part of a tensor.
//!
//! The reader of the tensors itself never calls what a pickle names, it leaves unknown calls aside. This
//! walk comes first so that a file which would run code under Python is refused rather than half read.
//! Opcodes: CPython, `Lib/pickletools.py`.

use std::collections::HashMap;

/// Why a pickle is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PickleFault {
    /// It names this Python object.
    Foreign(String),
    /// It is not a whole, well-formed pickle.
    Broken(String),
}

/// Walks one pickle at the start of `bytes` and returns its length, the STOP opcode included.
pub(super) fn check_pickle(bytes: &[u8]) -> Result<usize, PickleFault> {
    let mut walker = Walker { bytes, at: 0, top: [None; 2], memo: HashMap::new() };
    while walker.step()? {}
    Ok(walker.at)
}

/// Whether `module.name` is one of the things that `torch.save` needs to describe a tensor.
fn belongs_to_tensors(module: &str, name: &str) -> bool {
    match module {
        "collections" => name == "OrderedDict",
        "torch._utils" => matches!(
            name,
            "_rebuild_tensor"
                | "_rebuild_tensor_v2"
                | "_rebuild_tensor_v3"
                | "_rebuild_parameter"
                | "_rebuild_parameter_with_state"
        ),
        "torch._tensor" => name == "_rebuild_from_type_v2",
        "torch.nn.parameter" => name == "Parameter",
        "torch.serialization" => name == "_get_layout",
        "torch.storage" => matches!(name, "TypedStorage" | "UntypedStorage"),
        "torch" => {
            name.strip_suffix("Storage").is_some_and(|kind| kind.bytes().all(|b| b.is_ascii_alphanumeric()))
                || matches!(name, "Size" | "device" | "Tensor" | "strided" | "bool" | "half" | "float" | "double")
                || ["float", "bfloat", "int", "uint"]
                    .iter()
                    .any(|kind| name.strip_prefix(kind).is_some_and(|bits| matches!(bits, "8" | "16" | "32" | "64")))
        }
        _ => false,
    }
}

struct Walker<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The two uppermost stack entries, upper last, where they are strings just pushed: what STACK_GLOBAL reads.
    top: [Option<&'a [u8]>; 2],
    memo: HashMap<u32, Option<&'a [u8]>>,
}

impl<'a> Walker<'a> {
    /// One opcode; `false` after STOP.
    fn step(&mut self) -> Result<bool, PickleFault> {
        let opcode = self.take(1)?[0];
        match opcode {
            b'c' => self.global_in_text()?,
            0x93 => self.global_on_stack()?,
            b'V' => {
                let text = self.line()?;
                self.push_string(text);
            }
            b'X' => self.counted_string(4)?,
            0x8c => self.counted_string(1)?,
            0x8d => self.counted_string(8)?,
            b'T' => self.counted_string(4)?,
            b'U' => self.counted_string(1)?,
            // Memo: PUT variants leave the stack as it is, GET variants push a copy.
            b'p' => {
                let index = self.index_in_text()?;
                self.memo.insert(index, self.top[1]);
            }
            b'q' | b'r' => {
                let index = self.number(if opcode == b'q' { 1 } else { 4 })?;
                self.memo.insert(index as u32, self.top[1]);
            }
            0x94 => {
                self.memo.insert(self.memo.len() as u32, self.top[1]);
            }
            b'g' => {
                let index = self.index_in_text()?;
                self.push_memo(index)?;
            }
            b'h' | b'j' => {
                let index = self.number(if opcode == b'h' { 1 } else { 4 })?;
                self.push_memo(index as u32)?;
            }
            b'.' => return Ok(false),
            _ => {
                self.top = [None; 2];
                self.skip_argument(opcode)?;
            }
        }
        Ok(true)
    }

    /// Steps over the argument of an opcode that can neither name a global nor push a string.
    fn skip_argument(&mut self, opcode: u8) -> Result<(), PickleFault> {
        match opcode {
            // Marks, containers, constants, calls and state of objects named before.
            b'('
            | b'0'
            | b'1'
            | b'2'
            | b'Q'
            | b'R'
            | b'a'
            | b'b'
            | b'd'
            | b'}'
            | b'e'
            | b'l'
            | b']'
            | b's'
            | b't'
            | b')'
            | b'u'
            | b'N'
            | 0x81
            | 0x85..=0x89
            | 0x8f..=0x92 => {}
            b'F' | b'I' | b'L' | b'P' => {
                self.line()?;
            }
            b'K' | 0x80 => {
                self.take(1)?;
            }
            b'M' => {
                self.take(2)?;
            }
            b'J' => {
                self.take(4)?;
            }
            b'G' | 0x95 => {
                self.take(8)?;
            }
            b'C' | 0x8a => {
                self.counted(1)?;
            }
            b'B' | 0x8b => {
                self.counted(4)?;
            }
            0x8e | 0x96 => {
                self.counted(8)?;
            }
            b'i' => {
                let name = self.dotted_name()?;
                return Err(PickleFault::Foreign(name));
            }
            // EXT1, EXT2, EXT4 name a global by a number in Python's extension registry.
            0x82..=0x84 => return Err(PickleFault::Foreign("a copyreg extension".into())),
            other => {
                return Err(PickleFault::Broken(format!(
                    "byte {} of a pickle is 0x{other:02x}, which is no opcode of a state_dict",
                    self.at - 1
                )));
            }
        }
        Ok(())
    }

    fn global_in_text(&mut self) -> Result<(), PickleFault> {
        let (module, name) = (self.line()?, self.line()?);
        self.allow(module, name)
    }

    fn global_on_stack(&mut self) -> Result<(), PickleFault> {
        match self.top {
            [Some(module), Some(name)] => self.allow(module, name),
            _ => Err(PickleFault::Foreign("a global whose name is computed".into())),
        }
    }

    fn allow(&mut self, module: &[u8], name: &[u8]) -> Result<(), PickleFault> {
        self.top = [None; 2];
        let (module, name) = (String::from_utf8_lossy(module), String::from_utf8_lossy(name));
        if belongs_to_tensors(&module, &name) { Ok(()) } else { Err(PickleFault::Foreign(format!("{module}.{name}"))) }
    }

    fn dotted_name(&mut self) -> Result<String, PickleFault> {
        let (module, name) = (self.line()?, self.line()?);
        Ok(format!("{}.{}", String::from_utf8_lossy(module), String::from_utf8_lossy(name)))
    }

    fn push_string(&mut self, text: &'a [u8]) {
        self.top = [self.top[1], Some(text)];
    }

    fn push_memo(&mut self, index: u32) -> Result<(), PickleFault> {
        let Some(&entry) = self.memo.get(&index) else {
            return Err(PickleFault::Broken(format!("a pickle refers to memo {index}, which was never stored")));
        };
        self.top = [self.top[1], entry];
        Ok(())
    }

    fn counted_string(&mut self, width: usize) -> Result<(), PickleFault> {
        let text = self.counted(width)?;
        self.push_string(text);
        Ok(())
    }

    fn counted(&mut self, width: usize) -> Result<&'a [u8], PickleFault> {
        let len = self.number(width)?;
        self.take(usize::try_from(len).unwrap_or(usize::MAX))
    }

    /// A little-endian unsigned number of `width` bytes.
    fn number(&mut self, width: usize) -> Result<u64, PickleFault> {
        let mut word = [0; 8];
        word[..width].copy_from_slice(self.take(width)?);
        Ok(u64::from_le_bytes(word))
    }

    fn index_in_text(&mut self) -> Result<u32, PickleFault> {
        let text = self.line()?;
        std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.trim_end_matches('\r').parse().ok())
            .ok_or_else(|| PickleFault::Broken("a memo index of a pickle is no number".into()))
    }

    fn line(&mut self) -> Result<&'a [u8], PickleFault> {
        let rest = &self.bytes[self.at..];
        let Some(len) = rest.iter().position(|&b| b == b'\n') else {
            return Err(PickleFault::Broken("a pickle ends inside a line of text".into()));
        };
        self.at += len + 1;
        Ok(rest[..len].strip_suffix(b"\r").unwrap_or(&rest[..len]))
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], PickleFault> {
        let taken = self
            .at
            .checked_add(len)
            .and_then(|end| self.bytes.get(self.at..end))
            .ok_or_else(|| PickleFault::Broken("a pickle ends before its STOP".into()))?;
        self.at += len;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::{PickleFault, check_pickle};

    fn foreign(bytes: &[u8]) -> String {
        match check_pickle(bytes) {
            Err(PickleFault::Foreign(name)) => name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_outside_tensors_are_refused_in_every_encoding() {
        // GLOBAL, even when the object is dropped from the stack before STOP.
        assert_eq!(foreign(b"\x80\x02cposix\nsystem\nX\x02\0\0\0id\x85R0}."), "posix.system");
        // INST.
        assert_eq!(foreign(b"(ios\nsystem\n."), "os.system");
        // STACK_GLOBAL, straight and through the memo.
        assert_eq!(foreign(b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93."), "posix.system");
        assert_eq!(foreign(b"\x80\x04\x8c\x06system\x94\x8c\x05posix\x94h\x01h\0\x93."), "posix.system");
        // Protocol 0 text.
        assert_eq!(foreign(b"Vposix\np0\nVsystem\np1\n\x93."), "posix.system");
        // A name that cannot be read off the stream, and the extension registry.
        assert!(foreign(b"\x80\x04\x8c\x05posix)0\x8c\x06system\x93.").contains("computed"));
        assert!(foreign(b"\x80\x02\x82\x01.").contains("extension"));
    }

    #[test]
    fn relatives_of_tensors_that_run_code_are_refused() {
        for (module, name) in [
            ("torch.storage", "_load_from_bytes"),
            ("torch", "load"),
            ("torch", "hub.load.Storage"),
            ("torch._utils", "_import_dotted_name"),
            ("builtins", "eval"),
            ("collections", "OrderedDict.fromkeys"),
        ] {
            let pickle = format!("c{module}\n{name}\n.");
            assert_eq!(foreign(pickle.as_bytes()), format!("{module}.{name}"));
        }
    }

    #[test]
    fn what_tensors_need_is_allowed_and_the_length_is_exact() {
        let pickle: &[u8] = b"\x80\x02ccollections\nOrderedDict\nq\0)Rq\x01ctorch\nFloatStorage\nctorch._utils\n_rebuild_tensor_v2\nctorch\nfloat16\nh\x01.";
        let followed = [pickle, b"more"].concat();
        assert_eq!(check_pickle(&followed), Ok(pickle.len()));
        assert!(check_pickle(b"\x80\x04\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93)R.").is_ok());
    }

    #[test]
    fn every_cut_of_a_pickle_is_broken() {
        let pickle: &[u8] = b"\x80\x02ccollections\nOrderedDict\nq\0)R(X\x01\0\0\0aK\x01\x8a\x02ab\xffu.";
        let whole: Vec<u8> = pickle.iter().copied().filter(|&b| b != 0xff).collect();
        assert_eq!(check_pickle(&whole), Ok(whole.len()));
        for cut in 0..whole.len() {
            assert!(matches!(check_pickle(&whole[..cut]), Err(PickleFault::Broken(_))));
        }
        assert!(matches!(check_pickle(b"X\xff\xff\xff\xffa."), Err(PickleFault::Broken(_))));
        assert!(matches!(check_pickle(pickle), Err(PickleFault::Broken(_))));
    }
}
