"""How the tasks are asked for in training: the default words of `fastslm.prompts` first, then others."""

from fastslm.prompts import TASKS

TRANSCRIBE = (
    TASKS["transcribe"].phrasing or "",
    "Write down what is said.",
    "What is said in this recording?",
    "Transcribe this.",
    "Please give a transcript of the audio.",
    "Type out the speech, word for word.",
    "Write the words that you hear.",
)
TRANSLATE = (
    TASKS["translate"].phrasing or "",
    "What is said, in {language}?",
    "Write in {language} what is said.",
    "Translate this recording into {language}.",
    "Please give a {language} translation of the speech.",
    "Put the speech into {language}.",
)
SUMMARIZE = (
    TASKS["summarize"].phrasing or "",
    "Give a short summary of the recording.",
    "What is this recording about?",
    "Sum up what is said.",
    "Tell me the main points, briefly.",
    "Please summarise the speech.",
)
KEYWORDS = (
    "List the key words of the recording.",
    "Which words matter most in what is said?",
    "Give a few key words for the speech.",
    "Name the most important words of the recording.",
)
CONTINUATION = (
    'What is said right after "{words}"?',
    'How does the speaker go on after "{words}"?',
    'Which words follow "{words}"?',
    'Complete from the recording: "{words} …"',
)
HALF_MINUTE = (
    'In which half minute is "{words}" said?',
    'Which half minute of the recording holds "{words}"?',
    'When is "{words}" said? Answer with the half minute.',
)
