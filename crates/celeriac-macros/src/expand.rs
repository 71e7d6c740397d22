//! What `#[task]` writes.

use std::time::Duration;

use proc_macro2::{Ident, Span, TokenStream};
use quote::{ToTokens, format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Attribute, Expr, Lit, Meta, MetaNameValue, Path, ReturnType, parse_quote};

use crate::function::{Absent, ContextKind, Function, Parameter, is_lint_level, plain_name};
use crate::options::{Options, Retries};

/// The task: its type, the function that makes a call, the one that holds the body, and the implementations.
pub(crate) fn task(options: &Options, function: &Function) -> TokenStream {
    let krate: Path = options.krate.clone().unwrap_or_else(|| parse_quote!(::celeriac));
    let expansion = Expansion {
        private: quote!(#krate::__private),
        options,
        function,
        attributes: Attributes::sort(&function.attrs),
    };
    let parts =
        [expansion.marker(), expansion.signatures(), expansion.call(), expansion.typed(), expansion.task()];
    parts.into_iter().collect()
}

struct Expansion<'a> {
    /// The module of the library that holds what is named here.
    private: TokenStream,
    options: &'a Options,
    function: &'a Function,
    attributes: Attributes<'a>,
}

/// The attributes of the function, by where they belong.
#[derive(Default)]
struct Attributes<'a> {
    /// On everything, or some of it would be left when the rest is configured away.
    cfg: Vec<&'a Attribute>,
    /// Shown to callers.
    shown: Vec<&'a Attribute>,
    /// On the body: lint levels, `#[tracing::instrument]`, whatever else there is.
    body: Vec<&'a Attribute>,
}

impl<'a> Attributes<'a> {
    fn sort(attrs: &'a [Attribute]) -> Self {
        let mut sorted = Self::default();
        for attr in attrs {
            let path = attr.path();
            if path.is_ident("cfg") {
                sorted.cfg.push(attr);
            } else if path.is_ident("doc") || path.is_ident("deprecated") {
                sorted.shown.push(attr);
            } else {
                // An `expect` is met where the body is, and nowhere else.
                if is_lint_level(attr) && !path.is_ident("expect") {
                    sorted.shown.push(attr);
                }
                sorted.body.push(attr);
            }
        }
        sorted
    }
}

impl Expansion<'_> {
    /// The type of the task. Without values, so that its name is left free for the function.
    fn marker(&self) -> TokenStream {
        let Function { vis, ident, .. } = self.function;
        let cfg = &self.attributes.cfg;
        let doc = format!("The task `{}`.", plain_name(ident));
        quote! {
            #[doc = #doc]
            #(#cfg)*
            #[allow(dead_code, missing_debug_implementations, non_camel_case_types)]
            #vis enum #ident {}
        }
    }

    /// The function that makes a call with all arguments, and `s` for a call in a chain.
    fn signatures(&self) -> TokenStream {
        let Function { ident, parameters, .. } = self.function;
        let Attributes { cfg, shown, .. } = &self.attributes;
        let all = self.signature(ident, parameters);
        let lints = quote! {
            #[allow(clippy::needless_pass_by_value, clippy::too_many_arguments, clippy::used_underscore_binding)]
        };
        let partial = parameters.split_first().map(|(first, rest)| {
            let doc = format!(
                "A call whose `{}` is the value of what comes before it in a chain.",
                plain_name(&first.ident)
            );
            let s = format_ident!("s");
            let partial = self.signature(&s, rest);
            quote! {
                #(#cfg)*
                impl #ident {
                    #[doc = #doc]
                    #[allow(dead_code)]
                    #lints
                    #partial
                }
            }
        });
        quote! {
            #(#cfg)*
            #(#shown)*
            #lints
            #all
            #partial
        }
    }

    fn signature(&self, name: &Ident, parameters: &[Parameter]) -> TokenStream {
        let Self { private, function: Function { vis, ident: task, .. }, .. } = self;
        let arguments = parameters.iter().map(|parameter| {
            let (ident, ty) = (&parameter.ident, &parameter.written.ty);
            quote!(#ident: #ty)
        });
        let values = parameters.iter().map(|parameter| {
            let ident = &parameter.ident;
            let ty = &parameter.written.ty;
            let there = self.private_at(ty.span());
            quote_spanned!(ty.span()=> #there::encode_argument::<#ty>(&#ident))
        });
        quote! {
            #[must_use = "nothing is called before the signature is sent, with `delay` or in a canvas"]
            #vis fn #name(#(#arguments),*) -> #private::Signature<#task> {
                #private::call([#(#values),*])
            }
        }
    }

    /// The body, as a function to be called where it stands.
    fn call(&self) -> TokenStream {
        let Function { vis, ident, asyncness, context, parameters, output, body, .. } = self.function;
        let Attributes { cfg, body: attrs, .. } = &self.attributes;
        let context = context.iter().map(|context| &context.written);
        let written = context.chain(parameters.iter().map(|parameter| &parameter.written));
        quote! {
            #(#cfg)*
            impl #ident {
                /// Runs the task's body where it is called, as a worker would, but without a message.
                #(#attrs)*
                #[allow(dead_code, clippy::missing_const_for_fn, clippy::needless_pass_by_value, clippy::unused_async)]
                #vis #asyncness fn call(#(#written),*) #output #body
            }
        }
    }

    fn typed(&self) -> TokenStream {
        let Self { function, attributes: Attributes { cfg, .. }, .. } = self;
        let ident = &function.ident;
        let (returned, kind, at) = self.returned();
        let there = self.private_at(at);
        let output = if function.is_fallible() {
            quote_spanned!(at=> <#returned as #there::IntoTaskResult<#there::#kind>>::Output)
        } else {
            returned
        };
        quote_spanned! {at=>
            #(#cfg)*
            impl #there::Typed for #ident {
                type Output = #output;
            }
        }
    }

    /// The type that is returned, what marks its kind, and where to point at it.
    fn returned(&self) -> (TokenStream, Ident, Span) {
        let Function { ident, output, .. } = self.function;
        match output {
            ReturnType::Default => (quote!(()), format_ident!("Infallible"), ident.span()),
            ReturnType::Type(_, ty) => {
                let kind = if self.function.is_fallible() { "Fallible" } else { "Infallible" };
                (ty.to_token_stream(), Ident::new(kind, ty.span()), ty.span())
            }
        }
    }

    /// The private module, written where the user wrote something, so that an error about a path into it points there.
    fn private_at(&self, span: Span) -> TokenStream {
        respan(&self.private, span)
    }

    fn task(&self) -> TokenStream {
        let Self { private, function, attributes: Attributes { cfg, .. }, .. } = self;
        let ident = &function.ident;
        let name = self.name();
        let options = self.task_options();
        let description = self.description();
        let bind = self.bind();
        quote! {
            #(#cfg)*
            // What stands below carries the places of the user's own code, where lints would take it for theirs.
            #[allow(clippy::all, clippy::pedantic, clippy::expect_used)]
            impl #private::Task for #ident {
                const NAME: &'static ::core::primitive::str = #name;
                #options
                #description
                #bind
            }
        }
    }

    fn name(&self) -> TokenStream {
        let private = &self.private;
        if let Some(name) = &self.options.name {
            return name.to_token_stream();
        }
        let function = plain_name(&self.function.ident);
        quote! {{
            const MODULE: &::core::primitive::str = ::core::module_path!();
            const BYTES: [::core::primitive::u8; #private::name::length(MODULE, #function)] =
                #private::name::bytes(MODULE, #function);
            #private::name::text(&BYTES)
        }}
    }

    fn task_options(&self) -> TokenStream {
        let Self { private, options, .. } = self;
        let settings = settings(options, private);
        if settings.is_empty() {
            return TokenStream::new();
        }
        quote_spanned! {Span::mixed_site()=>
            fn options() -> #private::TaskOptions {
                let mut options = <#private::TaskOptions as ::core::default::Default>::default();
                #(options.#settings;)*
                options
            }
        }
    }

    /// What the function says of itself; types are left out, as their names say little of what they read.
    fn description(&self) -> TokenStream {
        let Self { private, function, attributes, .. } = self;
        let documentation = documentation(&attributes.shown);
        let parameters = function.parameters.iter().map(|parameter| {
            let (name, required) =
                (plain_name(&parameter.ident), matches!(parameter.absent, Absent::Refused));
            quote!((#name, #required))
        });
        quote! {
            fn description() -> ::core::option::Option<#private::Description> {
                ::core::option::Option::Some(#private::Description::of_function(#documentation, &[#(#parameters),*]))
            }
        }
    }

    fn bind(&self) -> TokenStream {
        let Self { private, function, .. } = self;
        let Function { ident, asyncness, context, parameters, .. } = function;
        let cx = Ident::new("cx", Span::mixed_site());
        let reads = parameters.iter().enumerate().map(|(index, parameter)| self.read(index, parameter));
        let values = (0..parameters.len()).map(local);
        let unused = context.is_none().then(|| quote!(let _ = #cx;));
        let context = context.as_ref().map(|context| match context.kind {
            ContextKind::Context => quote!(#cx,),
            ContextKind::Blocking => quote!(#private::BlockingContext::new(#cx),),
        });
        let wait = asyncness.map(|_| quote!(.await));
        let (_, kind, at) = self.returned();
        let there = self.private_at(at);
        // No expression of the user's is within, so that a plain name is safe.
        let run = quote_spanned! {at=>
            let returned = #ident::call(#context #(#values),*) #wait;
            #there::into_task_result::<#there::#kind, _>(returned)
        };
        // A future that is not `Send` is a matter of the whole function.
        let here = self.private_at(ident.span());
        let execution = match asyncness {
            Some(_) => {
                quote_spanned!(ident.span()=> #here::Execution::Async(#here::Box::pin(async move { #run })))
            }
            None => {
                quote_spanned!(ident.span()=> #here::Execution::Blocking(#here::Box::new(move || { #run })))
            }
        };
        let mutable = (!parameters.is_empty()).then(|| quote!(mut));
        quote_spanned! {Span::mixed_site()=>
            fn bind(
                #cx: #private::Context,
                arguments: #private::Arguments,
            ) -> ::core::result::Result<#private::Execution, #private::TaskError> {
                #unused
                let #mutable reader = #private::ArgumentReader::new(<Self as #private::Task>::NAME, arguments);
                #(#reads)*
                reader.finish()?;
                ::core::result::Result::Ok(#execution)
            }
        }
    }

    fn read(&self, index: usize, parameter: &Parameter) -> TokenStream {
        let ty = &parameter.written.ty;
        let there = self.private_at(ty.span());
        let (name, local, reader) =
            (plain_name(&parameter.ident), local(index), Ident::new("reader", Span::mixed_site()));
        let read = match &parameter.absent {
            Absent::Refused => {
                quote_spanned!(ty.span()=> #there::required_argument::<#ty>(&mut #reader, #name))
            }
            Absent::None => quote_spanned! {ty.span()=>
                #there::optional_argument::<#ty>(&mut #reader, #name, || ::core::option::Option::None)
            },
            Absent::Default(value) => quote_spanned! {ty.span()=>
                #there::optional_argument::<#ty>(&mut #reader, #name, || #value)
            },
        };
        quote!(let #local = #read?;)
    }
}

/// The text of the documentation comments.
fn documentation(attributes: &[&Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(MetaNameValue { path, value: Expr::Lit(literal), .. }) if path.is_ident("doc") => {
            match &literal.lit {
                // What follows `///` begins with a space.
                Lit::Str(text) => Some(text.value().lines().map(trimmed).collect::<Vec<_>>().join("\n")),
                _ => None,
            }
        }
        _ => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn trimmed(line: &str) -> &str {
    line.strip_prefix(' ').unwrap_or(line)
}

fn respan(tokens: &TokenStream, span: Span) -> TokenStream {
    // A path: there are no groups to look into.
    let respanned = tokens.clone().into_iter().map(|mut token| {
        token.set_span(span);
        token
    });
    respanned.collect()
}

/// What holds the value of the parameter at `index` while the others are read.
fn local(index: usize) -> Ident {
    format_ident!("argument_{index}", span = Span::mixed_site())
}

/// `field = value` for each option that was given.
fn settings(options: &Options, private: &TokenStream) -> Vec<TokenStream> {
    let some = |value: TokenStream| quote!(::core::option::Option::Some(#value));
    let flag = |value: bool| some(value.to_token_stream());
    let mut settings = Vec::new();
    let mut set = |field: &str, value: Option<TokenStream>| {
        let field = format_ident!("{field}");
        settings.extend(value.map(|value| quote!(#field = #value)));
    };
    set(
        "max_retries",
        options.max_retries.map(|retries| match retries {
            Retries::Most(count) => some(count.to_token_stream()),
            Retries::Unlimited => quote!(::core::option::Option::None),
        }),
    );
    set("default_retry_delay", options.default_retry_delay.map(duration));
    set("autoretry", options.autoretry().then(|| quote!(true)));
    set("retry_backoff", options.retry_backoff.map(duration).map(some));
    set("retry_backoff_max", options.retry_backoff_max.map(duration));
    set("retry_jitter", options.retry_jitter.map(ToTokens::into_token_stream));
    set("time_limit", options.time_limit.map(duration).map(some));
    set("soft_time_limit", options.soft_time_limit.map(duration).map(some));
    set("acks_late", options.acks_late.map(flag));
    set("ignore_result", options.ignore_result.map(flag));
    set("track_started", options.track_started.map(flag));
    set(
        "rate_limit",
        options.rate_limit.as_ref().map(|text| {
            some(quote! {
                ::core::primitive::str::parse::<#private::RateLimit>(#text).expect("checked when compiled")
            })
        }),
    );
    set("priority", options.priority.map(|priority| some(priority.to_token_stream())));
    set("queue", options.queue.as_ref().map(|queue| some(quote!(::core::convert::From::from(#queue)))));
    set("expires", options.expires.map(duration).map(some));
    settings
}

fn duration(duration: Duration) -> TokenStream {
    let (seconds, nanoseconds) = (duration.as_secs(), duration.subsec_nanos());
    quote!(::core::time::Duration::new(#seconds, #nanoseconds))
}
