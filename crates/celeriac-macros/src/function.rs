//! The function under `#[task]`: read, and checked for what cannot be called from elsewhere.

use proc_macro2::Group;
use syn::ext::IdentExt;
use syn::parse::{Parse, ParseStream};
use syn::{
    Attribute, Expr, FnArg, GenericArgument, Ident, Pat, PatType, PathArguments, Result, ReturnType,
    Signature, Token, Type, Visibility,
};

use crate::problems::Problems;

/// As many as the library can register by the function's name.
const PARAMETERS_MAX: usize = 12;

/// A function that can be a task.
pub(crate) struct Function {
    pub(crate) attrs: Vec<Attribute>,
    pub(crate) vis: Visibility,
    pub(crate) asyncness: Option<Token![async]>,
    pub(crate) ident: Ident,
    pub(crate) context: Option<ContextParameter>,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) output: ReturnType,
    /// Never looked into: the compiler reports what is wrong there.
    pub(crate) body: Group,
}

/// The first parameter, when it is the run's context.
pub(crate) struct ContextParameter {
    pub(crate) written: PatType,
    pub(crate) kind: ContextKind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ContextKind {
    Context,
    Blocking,
}

/// An argument of the task.
pub(crate) struct Parameter {
    /// As it stands in the function, without `#[default]`.
    pub(crate) written: PatType,
    pub(crate) ident: Ident,
    pub(crate) absent: Absent,
}

/// What becomes of an argument that a call leaves out.
pub(crate) enum Absent {
    Refused,
    None,
    Default(Expr),
}

impl Function {
    /// Whether it returns a type that is called `Result`.
    pub(crate) fn is_fallible(&self) -> bool {
        match &self.output {
            ReturnType::Default => false,
            ReturnType::Type(_, ty) => last_segment(ty).is_some_and(|name| name == "Result"),
        }
    }
}

impl Parse for Function {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let attrs = input.call(Attribute::parse_outer)?;
        let vis = input.parse()?;
        let signature: Signature = input.parse()?;
        if !input.peek(syn::token::Brace) {
            return Err(input.error("a task needs a body"));
        }
        let body = input.parse()?;
        let mut problems = Problems::default();
        check_signature(&signature, &mut problems);
        let (context, parameters) = parameters(&signature, &mut problems);
        problems.into_result()?;
        let Signature { asyncness, ident, output, .. } = signature;
        Ok(Self { attrs, vis, asyncness, ident, context, parameters, output, body })
    }
}

fn check_signature(signature: &Signature, problems: &mut Problems) {
    if let Some(constness) = &signature.constness {
        problems.add(constness, "a task runs in a worker, never in a constant: leave out `const`");
    }
    if let syn::Safety::Unsafe(safety) = &signature.safety {
        let message = "workers call tasks with whatever a message holds: leave out `unsafe`, and check the arguments \
                       before an `unsafe` block inside";
        problems.add(safety, message);
    }
    if let Some(abi) = &signature.abi {
        problems.add(abi, "a task is called by message, not from C: leave out `extern`");
    }
    if let Some(variadic) = &signature.variadic {
        problems.add(variadic, "a task has a fixed number of parameters: take a `Vec` instead");
    }
    if !signature.generics.params.is_empty() {
        let message = "a task has one name and one type for each argument, so it cannot be generic: name the types \
                       and let it own them, or write one task for each type";
        problems.add(&signature.generics, message);
    } else if let Some(clause) = &signature.generics.where_clause {
        problems.add(clause, "a task cannot be generic, so there is nothing to bound: leave out `where`");
    }
    if let ReturnType::Type(_, ty) = &signature.output {
        match success(ty) {
            Some(value) => check_data(value, Way::Returned, problems),
            None => check_data(ty, Way::Returned, problems),
        }
    }
}

fn parameters(signature: &Signature, problems: &mut Problems) -> (Option<ContextParameter>, Vec<Parameter>) {
    let mut context = None;
    let mut parameters: Vec<Parameter> = Vec::new();
    for (index, input) in signature.inputs.iter().enumerate() {
        let written = match input {
            FnArg::Typed(written) => written,
            FnArg::Receiver(receiver) => {
                let message =
                    "a task is a free function, for a worker has no `self`: take what it needs as arguments";
                problems.add(receiver, message);
                continue;
            }
        };
        match context_kind(&written.ty) {
            Some(kind) if index == 0 => context = context_parameter(signature, written, kind, problems),
            Some(_) if context.is_none() => {
                let message = "the context comes first: make this the first parameter; a type of your own that has \
                               this name by chance needs another one here, `use … as …`";
                problems.add(&written.ty, message);
            }
            _ => {
                let after_default =
                    parameters.iter().any(|earlier| !matches!(earlier.absent, Absent::Refused));
                parameters.extend(parameter(written, after_default, problems));
            }
        }
    }
    if let Some(extra) = parameters.get(PARAMETERS_MAX) {
        let message = format!("a task takes at most {PARAMETERS_MAX} arguments: put them into a struct");
        problems.add(&extra.written, message);
    }
    (context, parameters)
}

fn context_parameter(
    signature: &Signature,
    written: &PatType,
    kind: ContextKind,
    problems: &mut Problems,
) -> Option<ContextParameter> {
    if let Type::Reference(reference) = &*written.ty {
        problems.add(reference, "take the context itself instead of a reference: it is cheap to clone");
    }
    if kind == ContextKind::Blocking && signature.asyncness.is_some() {
        let message = "an `async fn` must not block: take `Context`, whose methods are awaited";
        problems.add(&written.ty, message);
    }
    if !matches!(&*written.pat, Pat::Wild(_)) {
        simple_name(&written.pat, problems)?;
    }
    check_attributes(&written.attrs, problems);
    Some(ContextParameter { written: written.clone(), kind })
}

fn parameter(written: &PatType, after_default: bool, problems: &mut Problems) -> Option<Parameter> {
    let mut written = written.clone();
    let mut default = None;
    let (defaults, others): (Vec<_>, Vec<_>) =
        std::mem::take(&mut written.attrs).into_iter().partition(|attr| attr.path().is_ident("default"));
    written.attrs = others;
    for attr in &defaults {
        if default.is_some() {
            problems.add(attr, "this parameter has a default already");
        }
        default = match attr.parse_args::<Expr>() {
            Ok(value) => Some(value),
            Err(_) => {
                problems.add(attr, "give the value: `#[default(10)]`");
                None
            }
        };
    }
    check_attributes(&written.attrs, problems);
    check_data(&written.ty, Way::Argument, problems);
    let ident = simple_name(&written.pat, problems)?;
    let absent = match default {
        Some(value) => Absent::Default(value),
        None if last_segment(&written.ty).is_some_and(|name| name == "Option") => Absent::None,
        None => Absent::Refused,
    };
    if after_default && defaults.is_empty() && matches!(absent, Absent::Refused) {
        let message = format!(
            "`{ident}` must be given, but a parameter before it may be left out: move it forward, or give it a default \
             with `#[default(…)]`"
        );
        problems.add(&ident, message);
    }
    Some(Parameter { written, ident, absent })
}

/// The name of a parameter, which is also the name of the argument in messages.
fn simple_name(pattern: &Pat, problems: &mut Problems) -> Option<Ident> {
    match pattern {
        Pat::Ident(name) if name.by_ref.is_none() && name.subpat.is_none() => Some(name.ident.clone()),
        _ => {
            let message = "a parameter of a task needs a plain name, which callers can give it by: take it whole and \
                           take it apart with `let` in the body";
            problems.add(pattern, message);
            None
        }
    }
}

fn check_attributes(attrs: &[Attribute], problems: &mut Problems) {
    for attr in attrs {
        if !is_lint_level(attr) {
            problems
                .add(attr, "on a parameter of a task only `#[default(…)]` and lint levels have a meaning");
        }
    }
}

/// `#[allow(…)]` and its like.
pub(crate) fn is_lint_level(attr: &Attribute) -> bool {
    ["allow", "expect", "warn", "deny", "forbid"].into_iter().any(|level| attr.path().is_ident(level))
}

/// What a type is for.
#[derive(Debug, Clone, Copy)]
enum Way {
    Argument,
    Returned,
}

impl Way {
    fn refusal(self, remedy: &str) -> String {
        match self {
            Self::Argument => format!("arguments travel as data: take {remedy}"),
            Self::Returned => format!("the value travels as data: return {remedy}"),
        }
    }
}

/// Refuses what can be seen not to be data; the compiler checks the rest.
fn check_data(ty: &Type, way: Way, problems: &mut Problems) {
    match ty {
        Type::Reference(reference) => problems.add(ty, way.refusal(&owned(&reference.elem))),
        Type::ImplTrait(_) => problems.add(ty, way.refusal("a type with a name instead of `impl …`")),
        Type::TraitObject(_) => problems.add(ty, way.refusal("an `enum` or `struct` instead of `dyn …`")),
        Type::FnPtr(_) => {
            problems.add(ty, way.refusal("the name of a task, or a signature, instead of a function"));
        }
        Type::Ptr(_) => problems.add(ty, way.refusal("the value itself instead of a pointer")),
        Type::Never(_) => problems.add(ty, way.refusal("`()` instead of `!`")),
        Type::Infer(_) => problems.add(ty, "name the type: it is what messages are read as"),
        Type::Array(array) => check_data(&array.elem, way, problems),
        Type::Slice(slice) => check_data(&slice.elem, way, problems),
        Type::Group(group) => check_data(&group.elem, way, problems),
        Type::Paren(paren) => check_data(&paren.elem, way, problems),
        Type::Tuple(tuple) => tuple.elems.iter().for_each(|elem| check_data(elem, way, problems)),
        Type::Path(path) => {
            for argument in
                path.path.segments.iter().flat_map(|segment| generic_arguments(&segment.arguments))
            {
                match argument {
                    GenericArgument::Type(ty) => check_data(ty, way, problems),
                    GenericArgument::Lifetime(lifetime) if lifetime.ident != "static" => {
                        problems.add(lifetime, way.refusal("a type that owns what it holds, or `'static`"));
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// What to write instead of a reference to `elem`.
fn owned(elem: &Type) -> String {
    if let Type::Slice(_) = elem {
        return "a `Vec` instead of a slice".to_owned();
    }
    match last_segment(elem).map(|name| name.to_string()).as_deref() {
        Some("str") => "`String` instead of `&str`".to_owned(),
        Some("Path") => "`PathBuf` instead of `&Path`".to_owned(),
        Some(name) => format!("the `{name}` itself instead of a reference"),
        None => "the value itself instead of a reference".to_owned(),
    }
}

/// The first type in the angle brackets of a `Result`: what a success is.
fn success(ty: &Type) -> Option<&Type> {
    let Type::Path(path) = ty else { return None };
    let segment = path.path.segments.last().filter(|segment| segment.ident == "Result")?;
    generic_arguments(&segment.arguments).find_map(|argument| match argument {
        GenericArgument::Type(ty) => Some(ty),
        _ => None,
    })
}

fn generic_arguments(arguments: &PathArguments) -> impl Iterator<Item = &GenericArgument> {
    match arguments {
        PathArguments::AngleBracketed(bracketed) => Some(bracketed.args.iter()),
        _ => None,
    }
    .into_iter()
    .flatten()
}

fn context_kind(ty: &Type) -> Option<ContextKind> {
    let ty = match ty {
        Type::Reference(reference) => &*reference.elem,
        ty => ty,
    };
    match last_segment(ty)?.to_string().as_str() {
        "Context" => Some(ContextKind::Context),
        "BlockingContext" => Some(ContextKind::Blocking),
        _ => None,
    }
}

fn last_segment(ty: &Type) -> Option<&Ident> {
    match ty {
        Type::Path(path) => path.path.segments.last().map(|segment| &segment.ident),
        Type::Group(group) => last_segment(&group.elem),
        Type::Paren(paren) => last_segment(&paren.elem),
        _ => None,
    }
}

/// The name as messages have it: `r#type` is `type` there.
pub(crate) fn plain_name(ident: &Ident) -> String {
    ident.unraw().to_string()
}
