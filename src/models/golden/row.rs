//! What a table of operations or blocks says of each: the tensors it takes, what their shapes imply of its attributes,
//! and how it is built.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::attributes::{Attributes, NoAttributes};
use super::error::CaseError;
use crate::graph::{Graph, GraphError, NodeId, Op};
use crate::ops::resize::UpsampleNearest2;

/// An operation or a block that cases may be about.
pub(crate) struct Row {
    /// Its name in configurations.
    pub name: &'static str,
    /// Its input tensors `in.*`, in the operation's order. A question mark says that it may be absent.
    pub inputs: &'static [&'static str],
    /// An operation's weights `param.*`, in its order, marked in the same way. Blocks name theirs themselves.
    pub weights: &'static [&'static str],
    /// What is known of its attributes beside the fields of its type.
    pub facts: &'static [Fact],
    /// How its input is read where that is not NCHW.
    pub layout: Layout,
    /// What the names of its weights begin with in the network and not in the case.
    pub scope: &'static str,
    /// Whether it is a loss, which training alone has a use for.
    pub loss: bool,
    /// Deserialises its type: [`operation`] or [`block`].
    pub read: fn(Attributes) -> Result<Box<dyn Block>, CaseError>,
}

/// What most operations have: one input and neither weights nor attributes.
pub(crate) const OF_X: Row = Row {
    name: "",
    inputs: &["x"],
    weights: &[],
    facts: &[],
    layout: Layout::Nchw,
    scope: "",
    loss: false,
    read: operation::<UpsampleNearest2>,
};

/// The channels of `x`.
pub(crate) const DIM: Fact = implied(&["dim", "channels"], |t| t.dim("in.x", 1));

/// The largest kernel, stride, padding and dilation of a convolution: padding grows a small input without end.
const MAX_REACH: u64 = 1024;

/// The limit of an attribute that is pixels of a convolution.
pub(crate) const fn reach(name: &'static str) -> Fact {
    Fact::Limit { name, limit: MAX_REACH }
}

/// A tensor as an operation of NCHW tensors takes it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// As it is.
    Nchw,
    /// Any number of dimensions, as a row: the operation works on each element by itself.
    Elements,
    /// The last dimension is the features', all before it the batch's.
    Features,
    /// The attribute `dim` says over which dimension the operation works: a row's, or else the channels'.
    Axis,
}

/// What is known of an attribute that the type does not read, or not by itself.
pub(crate) enum Fact {
    /// The tensors imply its value.
    Implied {
        /// The names that configurations have for it.
        names: &'static [&'static str],
        /// Its value.
        value: fn(&Tensors) -> Option<Value>,
        /// The field of the type that takes the value, if one does.
        field: Option<&'static str>,
    },
    /// Only one value is computed.
    Fixed {
        /// Its name.
        name: &'static str,
        /// The value.
        value: Literal,
        /// Whether a case must say so, because PyTorch's default is another.
        required: bool,
    },
    /// Its numbers have a limit, above which a small case would be a large computation.
    Limit {
        /// Its name.
        name: &'static str,
        /// The largest number.
        limit: u64,
    },
}

/// A constant of JSON.
pub(crate) enum Literal {
    Flag(bool),
    Number(f64),
    Text(&'static str),
}

impl Literal {
    fn value(&self) -> Value {
        match *self {
            Self::Flag(flag) => flag.into(),
            // Whole numbers are shown as such.
            Self::Number(number) if number.fract() == 0.0 => (number as u64).into(),
            Self::Number(number) => number.into(),
            Self::Text(text) => text.into(),
        }
    }
}

/// An attribute that the tensors imply and the type has no field for.
pub(crate) const fn implied(names: &'static [&'static str], value: fn(&Tensors) -> Option<Value>) -> Fact {
    Fact::Implied { names, value, field: None }
}

/// An attribute that the tensors imply, for the type's field `field`.
pub(crate) const fn given(
    field: &'static str,
    names: &'static [&'static str],
    value: fn(&Tensors) -> Option<Value>,
) -> Fact {
    Fact::Implied { names, value, field: Some(field) }
}

/// An attribute that has only one value.
pub(crate) const fn fixed(name: &'static str, value: Literal) -> Fact {
    Fact::Fixed { name, value, required: false }
}

/// The dimensions of a case's tensors by name, for what they imply.
pub(crate) struct Tensors<'a>(pub BTreeMap<&'a str, &'a [usize]>);

impl Tensors<'_> {
    /// The size of dimension `axis` of a tensor, counted from the last where it is negative.
    pub(crate) fn dim(&self, tensor: &str, axis: isize) -> Option<Value> {
        let dims = self.0.get(tensor)?;
        let axis = if axis < 0 { dims.len().checked_add_signed(axis)? } else { axis.unsigned_abs() };
        dims.get(axis).map(|&size| size.into())
    }

    /// How many times the first size is the second, if it is a multiple.
    pub(crate) fn ratio(&self, a: (&str, isize), b: (&str, isize)) -> Option<Value> {
        let (a, b) = (self.dim(a.0, a.1)?.as_u64()?, self.dim(b.0, b.1)?.as_u64()?);
        (b > 0 && a.is_multiple_of(b)).then(|| (a / b).into())
    }

    /// Whether a tensor is there.
    pub(crate) fn has(&self, tensor: &str) -> bool {
        self.0.contains_key(tensor)
    }
}

impl Fact {
    /// Checks the attributes that the fact is about and takes out those that the type does not read.
    pub(crate) fn check(&self, attributes: &mut Attributes, tensors: &Tensors) -> Result<(), CaseError> {
        match self {
            Self::Implied { names, value, field } => {
                let Some(value) = value(tensors) else {
                    // A tensor is missing or does not fit, which is said where it is read.
                    names.iter().for_each(|name| drop(attributes.take(name)));
                    return Ok(());
                };
                for name in *names {
                    attributes.expect(name, &value, "the tensors say")?;
                }
                field.map_or(Ok(()), |field| attributes.give(field, value))
            }
            Self::Fixed { name, value, required } => {
                let there = attributes.expect(name, &value.value(), "medfuse computes only")?;
                if *required && !there {
                    return Err(attributes.error(format!("it lacks the attribute {name}")));
                }
                Ok(())
            }
            Self::Limit { name, limit } => attributes.at_most(name, *limit),
        }
    }
}

/// What an operation or a block may read of its case.
pub(crate) struct Site {
    /// The tensors that the row lists and the case has, inputs before weights, by name.
    pub operands: Vec<(&'static str, NodeId)>,
    /// Whether the module was in training mode.
    pub training: bool,
}

impl Site {
    /// The tensor `name`, if the case has it.
    pub(crate) fn find(&self, name: &str) -> Option<NodeId> {
        self.operands.iter().find(|(known, _)| *known == name).map(|(_, id)| *id)
    }

    /// The tensor `name`.
    ///
    /// # Panics
    /// If the row does not list it as one that must be there.
    pub(crate) fn tensor(&self, name: &str) -> NodeId {
        self.find(name).expect("the row lists what its block reads")
    }

    /// All operands.
    pub(crate) fn ids(&self) -> Vec<NodeId> {
        self.operands.iter().map(|(_, id)| *id).collect()
    }
}

/// An operation or a block of layers. The fields of its type are its attributes.
pub(crate) trait Block {
    /// Adds its layers to the graph and returns its output.
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError>;
}

/// An operation on all tensors of its row.
struct Operation<O>(O);

impl<O: Op + Clone> Block for Operation<O> {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        g.apply("y", self.0.clone(), &site.ids())
    }
}

/// [`Row::read`] of an operation on all tensors of its row.
pub(crate) fn operation<O: Op + Clone + DeserializeOwned>(attributes: Attributes) -> Result<Box<dyn Block>, CaseError> {
    Ok(Box::new(Operation(attributes.read::<O>()?)))
}

impl<F: Fn(&mut Graph, &Site) -> Result<NodeId, GraphError>> Block for F {
    fn build(&self, g: &mut Graph, site: &Site) -> Result<NodeId, GraphError> {
        self(g, site)
    }
}

/// [`Row::read`] of a block that has no attributes.
pub fn plain<F: Fn(&mut Graph, &Site) -> Result<NodeId, GraphError> + 'static>(
    attributes: Attributes,
    build: F,
) -> Result<Box<dyn Block>, CaseError> {
    attributes.read::<NoAttributes>()?;
    Ok(Box::new(build))
}

/// [`Row::read`] of a block, and of an operation that is more than its attributes.
pub(crate) fn block<B: Block + DeserializeOwned + 'static>(
    attributes: Attributes,
) -> Result<Box<dyn Block>, CaseError> {
    Ok(Box::new(attributes.read::<B>()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The check of a fact against `{"a": value}` and a tensor `in.x` of 2x6x5, and what is left of the attributes.
    fn check(fact: Fact, value: Value) -> (Result<(), String>, Option<Value>, Option<Value>) {
        let mut attributes = Attributes::new("op", json!({ "a": value }).as_object().unwrap().clone());
        let tensors = Tensors(BTreeMap::from([("in.x", &[2, 6, 5][..]), ("param.w", &[3][..])]));
        let result = fact
            .check(&mut attributes, &tensors)
            .map_err(|error| error.to_string().trim_start_matches("op: ").to_owned());
        (result, attributes.take("a"), attributes.take("field"))
    }

    #[test]
    fn what_tensors_imply_is_checked_and_given() {
        assert_eq!(check(implied(&["a"], |t| t.dim("in.x", 1)), json!(6)), (Ok(()), None, None));
        assert_eq!(check(given("field", &["a"], |t| t.dim("in.x", -1)), json!(5)), (Ok(()), None, Some(json!(5))));
        let ratio = implied(&["a"], |t| t.ratio(("in.x", 1), ("param.w", 0)));
        assert_eq!(check(ratio, json!(3)).0.unwrap_err(), "a is 3, but the tensors say 2");
        // What no tensor says is an error of the tensor that is missing, not of the attribute.
        assert_eq!(check(implied(&["a"], |t| t.dim("in.y", 1)), json!(6)), (Ok(()), None, None));
        assert_eq!(check(implied(&["a"], |t| t.dim("in.x", -4)), json!(6)), (Ok(()), None, None));
        assert_eq!(check(implied(&["a"], |t| t.ratio(("in.x", 2), ("param.w", 0))), json!(1)), (Ok(()), None, None));
    }

    #[test]
    fn other_facts_are_one_value_or_a_limit() {
        assert_eq!(check(fixed("a", Literal::Number(2.0)), json!(2)), (Ok(()), None, None));
        assert_eq!(check(fixed("b", Literal::Flag(true)), json!(2)), (Ok(()), Some(json!(2)), None));
        let wrong = check(fixed("a", Literal::Number(1e-4)), json!(1e-3)).0;
        assert_eq!(wrong.unwrap_err(), "a is 0.001, but medfuse computes only 0.0001");
        let required = Fact::Fixed { name: "b", value: Literal::Flag(true), required: true };
        assert_eq!(check(required, json!(2)).0.unwrap_err(), "it lacks the attribute b");
        assert_eq!(check(Fact::Limit { name: "a", limit: 4 }, json!([2, 4])).1, Some(json!([2, 4])));
        assert!(check(Fact::Limit { name: "a", limit: 3 }, json!([2, 4])).0.is_err());
    }
}
