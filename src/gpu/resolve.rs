//! Holds a launch against what its kernel declares: every name must be where it belongs.

use super::adapter::GpuError;
use super::launch::{Bind, Kernel, Launch, Operand, Use, Value};
use super::shader::{Access, Field, FieldType, Interface};

/// Most workgroups in a dimension of a launch (WebGPU's limit).
const MAX_GROUPS: usize = 65_535;

/// A launch as the driver takes it: bytes, buffers in the order of bindings, workgroups.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Resolved {
    /// The bytes of `Params`.
    pub params: Vec<u8>,
    /// The buffer of each of the kernel's bindings, in their order; none where the launch has no such tensor.
    pub binds: Vec<Option<Bind>>,
    /// Workgroups in x, y and z, none over 65,535.
    pub workgroups: [u32; 3],
}

impl Interface {
    /// Finds where each tensor and value of `launch` belongs.
    ///
    /// # Errors
    /// [`GpuError`] if a name is missing, unknown, given twice or of another type; if a tensor lies where the kernel
    /// cannot see it; or if there are more workgroups than WebGPU launches.
    pub(crate) fn resolve(&self, launch: &Launch) -> Result<Resolved, GpuError> {
        let names = launch.tensors.iter().map(|(n, _)| *n).chain(launch.values.iter().map(|(n, _)| *n));
        let mut names: Vec<&str> = names.collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(GpuError::kernel(&launch.kernel, format!("{} is given twice", twice[0])));
        }
        let binds = self.binds(launch)?;
        let workgroups = self.workgroups(launch)?;
        Ok(Resolved { params: self.params(launch)?, binds, workgroups })
    }

    fn binds(&self, launch: &Launch) -> Result<Vec<Option<Bind>>, GpuError> {
        let fail = |message: String| GpuError::kernel(&launch.kernel, message);
        for (name, given) in &launch.tensors {
            if !self.bindings.iter().any(|b| b.name == *name) {
                return Err(fail(format!("it has no tensor {name}, or this entry point does not use it")));
            }
            if let Use::Read(tensor) | Use::Write(tensor) = given {
                self.check_place(&launch.kernel, name, tensor)?;
            }
        }
        let bind = |binding: &super::shader::Binding| {
            let given = launch.tensors.iter().find(|(name, _)| *name == binding.name);
            match (given.map(|(_, given)| *given), binding.access) {
                (None, _) => Err(fail(format!("the tensor {} is missing", binding.name))),
                (Some(Use::Read(_)), Access::Write) => Err(fail(format!("it writes {}", binding.name))),
                (Some(Use::Write(_)), Access::Read) => Err(fail(format!("it does not write {}", binding.name))),
                (Some(Use::Absent), _) => Ok(None),
                (Some(Use::Read(tensor) | Use::Write(tensor)), _) => Ok(Some(tensor.bind)),
            }
        };
        self.bindings.iter().map(bind).collect()
    }

    /// A tensor that does not begin its buffer, or whose items are not dense, needs fields that say so.
    fn check_place(&self, kernel: &Kernel, name: &str, tensor: &Operand) -> Result<(), GpuError> {
        let has = |field: &str| self.fields.iter().any(|f| f.name.strip_prefix(name) == Some(field));
        let slot = &tensor.slot;
        if slot.offset != 0 && !has("_offset") {
            return Err(GpuError::kernel(kernel, format!("{name} is not at the beginning of its buffer")));
        }
        if !slot.is_contiguous() && !has("_batch_stride") {
            return Err(GpuError::kernel(kernel, format!("the batch items of {name} do not follow one another")));
        }
        Ok(())
    }

    fn workgroups(&self, launch: &Launch) -> Result<[u32; 3], GpuError> {
        let grid = launch.grid;
        if grid.iter().all(|count| *count <= MAX_GROUPS) {
            return Ok(grid.map(|count| count as u32));
        }
        let count = grid.iter().try_fold(1usize, |product, count| product.checked_mul(*count));
        let rows = count.map(|count| count.div_ceil(MAX_GROUPS)).filter(|rows| *rows <= MAX_GROUPS);
        match rows {
            Some(rows) if self.fields.iter().any(|f| f.name == "grid") => Ok([MAX_GROUPS as u32, rows as u32, 1]),
            Some(_) => Err(GpuError::kernel(&launch.kernel, format!("it cannot number {grid:?} workgroups"))),
            None => Err(GpuError::kernel(&launch.kernel, format!("{grid:?} workgroups are too many"))),
        }
    }

    fn params(&self, launch: &Launch) -> Result<Vec<u8>, GpuError> {
        if let Some((name, _)) = launch.values.iter().find(|(name, _)| !self.fields.iter().any(|f| f.name == *name)) {
            return Err(GpuError::kernel(&launch.kernel, format!("it has no parameter {name}")));
        }
        let mut bytes = vec![0; self.size];
        for field in &self.fields {
            let words = self.words(launch, field)?;
            let words = bytemuck::cast_slice(&words);
            bytes[field.offset..][..words.len()].copy_from_slice(words);
        }
        Ok(bytes)
    }

    /// The value of a field in 32-bit words.
    fn words(&self, launch: &Launch, field: &Field) -> Result<Vec<u32>, GpuError> {
        let fail = |message: String| Err(GpuError::kernel(&launch.kernel, message));
        let name = &field.name;
        if let Some((_, value)) = launch.values.iter().find(|(n, _)| n == name) {
            return match (*value, field.ty) {
                (Value::U32(v), FieldType::U32) => Ok(vec![v]),
                (Value::I32(v), FieldType::I32) => Ok(vec![v.cast_unsigned()]),
                (Value::F32(v), FieldType::F32) => Ok(vec![v.to_bits()]),
                (Value::Vec4(v), FieldType::Vec4) => Ok(v.to_vec()),
                (Value::TooLarge(v), _) => fail(format!("{name} is {v}, which does not fit 32 bits")),
                (value, ty) => fail(format!("the parameter {name} is {ty:?}, given {value:?}")),
            };
        }
        let word = |number: usize| match u32::try_from(number) {
            Ok(word) => Ok(vec![word]),
            Err(_) => fail(format!("{name} is {number}, which does not fit 32 bits")),
        };
        match (name.as_str(), field.ty) {
            ("grid", FieldType::Vec3) => {
                // They fit 32 bits: `workgroups` was called before.
                Ok(launch.grid.map(|count| count as u32).to_vec())
            }
            (_, FieldType::U32) => match self.placed(launch, name) {
                Some(number) => word(number),
                None => fail(format!("the parameter {name} is missing")),
            },
            _ => fail(format!("the parameter {name} is missing")),
        }
    }

    /// The value of a field `NAME_offset` or `NAME_batch_stride` of a tensor; zero if the launch does not have the
    /// tensor.
    fn placed(&self, launch: &Launch, field: &str) -> Option<usize> {
        self.declared.iter().find_map(|tensor| {
            let part = field.strip_prefix(tensor.as_str())?;
            let given = launch.tensors.iter().find(|(name, _)| name == tensor);
            let slot = match given {
                Some((_, Use::Read(operand) | Use::Write(operand))) => Some(operand.slot),
                _ => None,
            };
            match part {
                "_offset" => Some(slot.map_or(0, |s| s.offset)),
                "_batch_stride" => Some(slot.map_or(0, |s| s.batch_stride)),
                _ => None,
            }
        })
    }
}

#[cfg(test)]
pub(crate) use checks::check;

#[cfg(test)]
mod checks {
    //! What unit tests check of every launch of every kernel, without a GPU.

    use naga::back::pipeline_constants::process_overrides;

    use super::super::shader::Parsed;
    use super::*;

    /// Fails if the kernel is not valid in the variant that its constants make, if the launch does not name what the
    /// kernel declares, if the kernel keeps sums in an array that is indexed at run time, or if it does not number its
    /// workgroups as `place.wgsl` does.
    pub(crate) fn check(launch: &Launch) -> Result<(), GpuError> {
        let kernel = &launch.kernel;
        let fail = |message: String| Err(GpuError::kernel(kernel, message));
        let parsed = Parsed::new(kernel)?;
        let interface = Interface::of_parsed(kernel, &parsed)?;
        interface.resolve(launch)?;
        let constants = kernel.constants.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        let entry = Some((naga::ShaderStage::Compute, kernel.entry));
        if let Err(error) = process_overrides(&parsed.module, &parsed.info, entry, &constants) {
            return fail(error.to_string());
        }
        if let Some(array) = indexed_array(&parsed.module) {
            return fail(format!(
                "it writes the array {array} at an index known at run time only: it would lie in memory"
            ));
        }
        if !interface.fields.iter().any(|f| f.name == "grid" && f.ty == FieldType::Vec3) {
            return fail("its parameters have no field grid: vec3<u32>".into());
        }
        Ok(())
    }

    /// The name of a local or private array that is written at an index which is no constant.
    fn indexed_array(module: &naga::Module) -> Option<String> {
        let entries = module.entry_points.iter().map(|e| &e.function);
        let mut functions = module.functions.iter().map(|(_, f)| f).chain(entries);
        functions.find_map(|function| stored_array(module, function, &function.body))
    }

    fn stored_array(module: &naga::Module, function: &naga::Function, block: &naga::Block) -> Option<String> {
        block.iter().find_map(|statement| match statement {
            naga::Statement::Store { pointer, .. } => run_time_index(module, function, *pointer),
            naga::Statement::Block(inner) => stored_array(module, function, inner),
            naga::Statement::If { accept, reject, .. } => {
                stored_array(module, function, accept).or_else(|| stored_array(module, function, reject))
            }
            naga::Statement::Switch { cases, .. } => cases.iter().find_map(|c| stored_array(module, function, &c.body)),
            naga::Statement::Loop { body, continuing, .. } => {
                stored_array(module, function, body).or_else(|| stored_array(module, function, continuing))
            }
            _ => None,
        })
    }

    /// The array that a pointer leads into at an index known at run time only, if it is a local or private one.
    fn run_time_index(
        module: &naga::Module,
        function: &naga::Function,
        mut pointer: naga::Handle<naga::Expression>,
    ) -> Option<String> {
        let mut at_run_time = false;
        loop {
            match function.expressions[pointer] {
                naga::Expression::Access { base, .. } => {
                    at_run_time = true;
                    pointer = base;
                }
                naga::Expression::AccessIndex { base, .. } => pointer = base,
                naga::Expression::LocalVariable(variable) if at_run_time => {
                    return Some(function.local_variables[variable].name.clone().unwrap_or_default());
                }
                naga::Expression::GlobalVariable(variable) if at_run_time => {
                    let variable = &module.global_variables[variable];
                    let private = variable.space == naga::AddressSpace::Private;
                    return private.then(|| variable.name.clone().unwrap_or_default());
                }
                _ => return None,
            }
        }
    }
}
