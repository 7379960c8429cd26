//! The embedded WGSL: how the text of a kernel is put together, and what it declares.

use naga::valid::{Capabilities, GlobalUse, ModuleInfo, ValidationFlags, Validator};

use super::adapter::GpuError;
use super::launch::Kernel;

static KERNELS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
static SHARED: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/shared.rs"));

/// How a kernel uses one of its buffers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    /// It reads a tensor.
    Read,
    /// It writes a tensor, and may read it.
    Write,
}

/// A buffer that an entry point uses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Binding {
    /// Its name in the kernel's text.
    pub name: String,
    /// Its number in group 0.
    pub number: u32,
    /// How it is used.
    pub access: Access,
}

/// The type of a field of `Params`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FieldType {
    U32,
    I32,
    F32,
    /// `vec3<u32>`, which `grid` alone has.
    Vec3,
    Vec4,
}

/// A field of a kernel's `Params`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Field {
    pub name: String,
    /// Bytes from the struct's beginning.
    pub offset: usize,
    pub ty: FieldType,
}

/// The buffers and parameters that an entry point of a kernel takes, as its text declares them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Interface {
    /// The buffers that the entry point uses.
    pub bindings: Vec<Binding>,
    /// The names of all buffers that the text declares, those that this entry point does not use as well.
    pub declared: Vec<String>,
    /// The fields of `Params`.
    pub fields: Vec<Field>,
    /// Bytes of `Params`.
    pub size: usize,
    /// The number of the binding of `Params`, if the entry point uses it.
    pub params: Option<u32>,
}

/// The WGSL text of a kernel. Lines of the files that are not WGSL:
/// - `//#use NAME` is replaced with `shaders/shared/NAME.wgsl`;
/// - `//@NAME` is replaced with the text of that name that the launch gives ([`Kernel::texts`]);
/// - the lines from `//#for A,B in 0,1 2,3` to `//#end` are written once for each item, with `$A` and `$B` replaced;
///   `//#for K in 0..8` counts. It gives sums names of their own, where an array would lie in memory on a GPU.
///
/// # Errors
/// If the file or something it uses does not exist, or a repetition is not well-formed.
pub(crate) fn source(kernel: &Kernel) -> Result<String, GpuError> {
    let fail = |message: String| GpuError::kernel(kernel, message);
    let text = find(KERNELS, kernel.file).ok_or_else(|| fail("there is no such file".into()))?;
    let mut source = String::with_capacity(2 * text.len());
    append(&mut source, text, kernel).map_err(fail)?;
    Ok(source)
}

fn append(source: &mut String, text: &str, kernel: &Kernel) -> Result<(), String> {
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let command = line.trim();
        if let Some(name) = command.strip_prefix("//#use ") {
            append(source, find(SHARED, name).ok_or_else(|| format!("it uses {name}, which is missing"))?, kernel)?;
        } else if let Some(header) = command.strip_prefix("//#for ") {
            let body = body(&mut lines).ok_or_else(|| format!("//#for {header} has no //#end"))?;
            for item in items(header).ok_or_else(|| format!("//#for {header} is not understood"))? {
                append(source, &replaced(&body, &item), kernel)?;
            }
        } else if let Some(name) = command.strip_prefix("//@") {
            let given = kernel.texts.iter().find(|(n, _)| *n == name);
            source.push_str(&given.ok_or_else(|| format!("it needs the text {name}"))?.1);
        } else {
            source.push_str(line);
        }
        source.push('\n');
    }
    Ok(())
}

/// The lines up to the `//#end` that belongs to the `//#for` before them.
fn body(lines: &mut std::str::Lines) -> Option<String> {
    let mut body = String::new();
    let mut depth = 1;
    for line in lines {
        let command = line.trim();
        depth += usize::from(command.starts_with("//#for "));
        depth -= usize::from(command == "//#end");
        if depth == 0 {
            return Some(body);
        }
        body.push_str(line);
        body.push('\n');
    }
    None
}

/// The names and values of every item of `NAMES in ITEMS`.
fn items(header: &str) -> Option<Vec<Vec<(&str, String)>>> {
    let (names, items) = header.split_once(" in ")?;
    let names: Vec<&str> = names.split(',').map(str::trim).collect();
    if let Some((first, end)) = items.split_once("..") {
        let range = first.trim().parse::<usize>().ok()?..end.trim().parse().ok()?;
        return Some(range.map(|i| vec![(names[0], i.to_string())]).collect());
    }
    let item = |item: &str| {
        let values: Vec<String> = item.split(',').map(str::to_owned).collect();
        (values.len() == names.len()).then(|| names.iter().copied().zip(values).collect())
    };
    items.split_whitespace().map(item).collect()
}

fn replaced(body: &str, item: &[(&str, String)]) -> String {
    item.iter().fold(body.to_owned(), |text, (name, value)| text.replace(&format!("${name}"), value))
}

/// Names of all kernel files.
#[cfg(test)]
pub(crate) fn kernel_names() -> impl Iterator<Item = &'static str> {
    KERNELS.iter().map(|(name, _)| *name)
}

fn find(table: &[(&str, &'static str)], name: &str) -> Option<&'static str> {
    table.iter().find(|(n, _)| *n == name).map(|(_, text)| *text)
}

/// A kernel's text, parsed and validated.
pub(super) struct Parsed {
    pub module: naga::Module,
    pub info: ModuleInfo,
}

impl Parsed {
    /// # Errors
    /// [`GpuError`] with naga's words.
    pub(crate) fn new(kernel: &Kernel) -> Result<Self, GpuError> {
        let fail = |message: String| GpuError::kernel(kernel, message);
        let text = source(kernel)?;
        let module = naga::front::wgsl::parse_str(&text).map_err(|e| fail(e.emit_to_string(&text)))?;
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
        let info = validator.validate(&module).map_err(|e| fail(e.emit_to_string(&text)))?;
        Ok(Self { module, info })
    }
}

impl Interface {
    /// The interface of a kernel's entry point.
    ///
    /// # Errors
    /// [`GpuError`] if the kernel is not valid WGSL, has no such entry point or constant, or has parameters of a type
    /// that launches do not give.
    pub(crate) fn of(kernel: &Kernel) -> Result<Self, GpuError> {
        Self::of_parsed(kernel, &Parsed::new(kernel)?)
    }

    pub(super) fn of_parsed(kernel: &Kernel, Parsed { module, info }: &Parsed) -> Result<Self, GpuError> {
        let fail = |message: String| GpuError::kernel(kernel, message);
        let entry = module.entry_points.iter().position(|e| e.name == kernel.entry);
        let entry = entry.ok_or_else(|| fail("it has no such entry point".into()))?;
        check_constants(kernel, module)?;
        let uses = info.get_entry_point(entry);
        let mut found = Self { bindings: Vec::new(), declared: Vec::new(), fields: Vec::new(), size: 0, params: None };
        for (handle, var) in module.global_variables.iter() {
            let Some(place) = &var.binding else { continue };
            let name = var.name.clone().unwrap_or_default();
            let used = !uses[handle].is_empty();
            match var.space {
                naga::AddressSpace::Uniform => {
                    (found.fields, found.size) = fields(module, var.ty).map_err(fail)?;
                    found.params = used.then_some(place.binding);
                }
                naga::AddressSpace::Storage { access } => {
                    let writes = access.contains(naga::StorageAccess::STORE);
                    let access = if writes { Access::Write } else { Access::Read };
                    found.declared.push(name.clone());
                    if used {
                        found.bindings.push(Binding { name, number: place.binding, access });
                    }
                }
                _ => {}
            }
            debug_assert!(!uses[handle].contains(GlobalUse::ATOMIC), "sums have a fixed order: no atomics");
        }
        Ok(found)
    }
}

/// Every constant must be one of the text's, and every one of the text's without a default must be given.
fn check_constants(kernel: &Kernel, module: &naga::Module) -> Result<(), GpuError> {
    let named = |name: &str| module.overrides.iter().any(|(_, o)| o.name.as_deref() == Some(name));
    if let Some((name, _)) = kernel.constants.iter().find(|(name, _)| !named(name)) {
        return Err(GpuError::kernel(kernel, format!("it has no constant {name}")));
    }
    let given = |name: &str| kernel.constants.iter().any(|(n, _)| *n == name);
    let names = module.overrides.iter().filter(|(_, o)| o.init.is_none()).filter_map(|(_, o)| o.name.as_deref());
    match names.into_iter().find(|name| !given(name)) {
        Some(name) => Err(GpuError::kernel(kernel, format!("the constant {name} is missing"))),
        None => Ok(()),
    }
}

/// The fields of a struct of parameters, and its bytes.
fn fields(module: &naga::Module, ty: naga::Handle<naga::Type>) -> Result<(Vec<Field>, usize), String> {
    let naga::TypeInner::Struct { members, span } = &module.types[ty].inner else {
        return Err("its parameters are not a struct".into());
    };
    let field = |member: &naga::StructMember| {
        let name = member.name.clone().unwrap_or_default();
        let ty = match module.types[member.ty].inner {
            naga::TypeInner::Scalar(naga::Scalar::U32) => FieldType::U32,
            naga::TypeInner::Scalar(naga::Scalar::I32) => FieldType::I32,
            naga::TypeInner::Scalar(naga::Scalar::F32) => FieldType::F32,
            naga::TypeInner::Vector { size: naga::VectorSize::Tri, scalar: naga::Scalar::U32 } => FieldType::Vec3,
            naga::TypeInner::Vector { size: naga::VectorSize::Quad, scalar: naga::Scalar::U32 } => FieldType::Vec4,
            _ => return Err(format!("the parameter {name} has a type that launches do not give")),
        };
        Ok(Field { name, offset: member.offset as usize, ty })
    };
    Ok((members.iter().map(field).collect::<Result<_, _>>()?, *span as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        let kernel = Kernel { file: "", entry: "", constants: Vec::new(), texts: vec![("value", "x".into())] };
        let mut source = String::new();
        append(&mut source, text, &kernel).map(|()| source)
    }

    #[test]
    fn lines_are_repeated_with_names_replaced() {
        let text = "a\n//#for I,V in 0,x 1,y\n  //#for J in 0..2\n  s$I$J = $V;\n  //#end\n//#end\n//@value\n";
        let lines = expanded(text).unwrap();
        let lines: Vec<&str> = lines.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        assert_eq!(lines, ["a", "s00 = x;", "s01 = x;", "s10 = y;", "s11 = y;", "x"]);
    }

    #[test]
    fn what_is_not_well_formed_is_told() {
        for text in ["//#for I in 0..2\na\n", "//#for I 0..2\n//#end\n", "//#for I,J in 0\n//#end\n", "//@other\n"] {
            assert!(expanded(text).is_err(), "{text}");
        }
    }
}
