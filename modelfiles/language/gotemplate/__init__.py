"""Go's text/template as Ollama uses it: parsed as strictly as Go does, and run on plain Python values.

Syntax: https://pkg.go.dev/text/template. Values print as Ollama does: the API's objects and lists as JSON. printf knows
%s, %v, %d and %q; methods of Go's types do not exist here.
"""

from modelfiles.language.gotemplate.errors import GoTemplateError
from modelfiles.language.gotemplate.execute import execute
from modelfiles.language.gotemplate.nodes import Action, Field, Pipe, Template, fields, undefined_templates
from modelfiles.language.gotemplate.parser import parse_template

__all__ = [
    "Action",
    "Field",
    "GoTemplateError",
    "Pipe",
    "Template",
    "execute",
    "fields",
    "parse_template",
    "undefined_templates",
]
